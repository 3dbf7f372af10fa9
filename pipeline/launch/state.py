"""What a launcher on the cluster remembers, in ``runs/<run>/launch.json``: another one goes on from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Self

from components.errors import NotFound
from components.storage.base import Storage
from pipeline.launch.pods import Gang
from pipeline.launch.policy import Standing
from pipeline.placement import Pool

KEY = "launch.json"


class Job(NamedTuple):
    """The TrainJob that is followed, and what each of its machines costs, in $ per hour."""

    name: str
    uid: str
    pool: Pool
    nodes: int
    usd_per_hour: float


@dataclass(frozen=True)
class Open:
    """An attempt that has not been closed.

    Attributes:
        number: Its number, from 0.
        job: The job that its pods belong to.
        asked: Since when its machines are asked for, in seconds since 1970.
        first: Step of the checkpoint that it goes on from.
        gang: Its pods.
        old: Uids of pods of the attempts before that may still be seen.
    """

    number: int
    job: Job
    asked: float
    first: int
    gang: Gang = field(default_factory=lambda: Gang({}))
    old: tuple[str, ...] = ()


class Ending(NamedTuple):
    """Why nothing is started any more: ``done``, ``budget``, ``deadline``, ``asked`` or ``failed``, and with what."""

    why: str
    code: int = 0
    message: str = ""


@dataclass(frozen=True)
class Memory:
    """All that survives the launcher.

    Attributes:
        number: How many jobs the run has had.
        attempts: How many attempts have been closed since training was asked for.
        standing: Where the run stands; None before it was ever launched.
        job: The job that is followed.
        judged: How many attempts of that job have been closed.
        left: Name of the job before, of which something may still run.
        attempt: The attempt that is followed.
        ending: Why nothing is started any more.
        finished: Whether the last launch has come to its end; the next begins with a fresh standing.
        done: Digest of the dataset that was trained on to the last step, if any was.
    """

    number: int = 0
    attempts: int = 0
    standing: Standing | None = None
    job: Job | None = None
    judged: int = 0
    left: str | None = None
    attempt: Open | None = None
    ending: Ending | None = None
    finished: bool = False
    done: str | None = None

    @classmethod
    def read(cls, run: Storage) -> Self:
        """Return what the run's folder holds; an empty memory where there is none."""
        try:
            kept = run.read_json(KEY)
        except NotFound:
            return cls()
        attempt = kept["attempt"]
        if attempt is not None:
            known = {"job": Job(**attempt["job"]), "gang": Gang.load(attempt["gang"]), "old": tuple(attempt["old"])}
            attempt = Open(**{**attempt, **known})
        return cls(
            number=kept["number"],
            attempts=kept["attempts"],
            standing=None if kept["standing"] is None else Standing(**kept["standing"]),
            job=None if kept["job"] is None else Job(**kept["job"]),
            judged=kept["judged"],
            left=kept["left"],
            attempt=attempt,
            ending=None if kept["ending"] is None else Ending(**kept["ending"]),
            finished=kept["finished"],
            done=kept["done"],
        )

    def dump(self) -> dict[str, Any]:
        """Return it as JSON values."""
        attempt = None
        if self.attempt is not None:
            opened = self.attempt
            attempt = {**_shallow(opened), "job": opened.job._asdict(), "gang": opened.gang.dump()}
        return {
            **_shallow(self),
            "standing": None if self.standing is None else asdict(self.standing),
            "job": None if self.job is None else self.job._asdict(),
            "attempt": attempt,
            "ending": None if self.ending is None else self.ending._asdict(),
        }


class Notebook:
    """The memory, and where it is kept: what changes is written at once, so that nobody has to do it again."""

    def __init__(self, run: Storage) -> None:
        self._run = run
        self.memory = Memory.read(run)

    def note(self, **changes: Any) -> None:
        """Remember something."""
        memory = replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self._run.write_json(KEY, memory.dump())

    @property
    def standing(self) -> Standing:
        """Where the run stands, which is known from the start of a launch on."""
        assert self.memory.standing is not None
        return self.memory.standing


def _shallow(record: Memory | Open) -> dict[str, Any]:
    return dict(vars(record))
