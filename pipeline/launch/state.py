"""What a launcher on the cluster must not forget: ``runs/<run>/launch.json``, from which the next launcher goes on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.accounting.ledger import Pool
from components.errors import ConfigError, NotFound
from components.storage.base import Storage
from pipeline.launch.pods import Gang
from pipeline.launch.policy import LaunchState

KEY = "launch.json"
FORMAT = 2


@dataclass(frozen=True)
class TrainJobRecord:
    """A TrainJob that is followed, and the price of each of its nodes in $ per hour."""

    name: str
    uid: str
    pool: Pool
    nodes: int
    usd_per_hour: float


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt whose books are not closed.

    Attributes:
        number: Its number, from 0.
        job: The job that its pods belong to.
        requested_at: Since when its nodes are requested, in seconds since 1970.
        start_step: Step of the checkpoint that it resumes from.
        gang: Its pods.
        earlier_pods: Uids of pods of earlier attempts that may still exist.
        watched_at: When a launcher last saw which of its pods exist, to the minute; in seconds since 1970.
    """

    number: int
    job: TrainJobRecord
    requested_at: float
    start_step: int
    gang: Gang = field(default_factory=lambda: Gang({}))
    earlier_pods: tuple[str, ...] = ()
    watched_at: float = 0.0


@dataclass(frozen=True)
class LaunchEnd:
    """Why no more jobs are submitted.

    Attributes:
        reason: ``finished``, ``budget``, ``deadline``, ``stop-requested`` or ``failed``.
        exit_code: The trainer's exit code that forbids a restart, if it failed so.
        message: What went wrong.
    """

    reason: str
    exit_code: int = 0
    message: str = ""


@dataclass(frozen=True)
class LaunchRecord:
    """All that survives the launcher.

    Attributes:
        jobs: How many jobs the run has had.
        attempts: How many attempts were closed since the training was launched.
        state: The numbers that decide what is next; None if the run was never launched.
        job: The job that is followed.
        job_attempts: How many attempts of that job were closed.
        deleted_job: Name of the deleted job before it, if some of it may still run.
        attempt: The attempt that is followed.
        end: Why no more jobs are submitted; None while the launch goes on.
        is_over: Whether the last launch has come to its end; the next one starts with a new state.
        trained_dataset: Digest of the dataset that was trained on to the last step.
    """

    jobs: int = 0
    attempts: int = 0
    state: LaunchState | None = None
    job: TrainJobRecord | None = None
    job_attempts: int = 0
    deleted_job: str | None = None
    attempt: OpenAttempt | None = None
    end: LaunchEnd | None = None
    is_over: bool = False
    trained_dataset: str | None = None


_RECORD = TypeAdapter(LaunchRecord)


class StateFile:
    """The launch record and the file that keeps it: every change is written at once, before it is acted on.

    Args:
        run: The run's folder.

    Raises:
        ConfigError: If the file has another format, or cannot be read.
    """

    def __init__(self, run: Storage) -> None:
        self._run = run
        self.record = _read(run)

    def update(self, **changes: Any) -> None:
        """Change fields of the record."""
        record = replace(self.record, **changes)
        if record != self.record:
            self.record = record
            self._run.write_json(KEY, {"format": FORMAT, **_RECORD.dump_python(record, mode="json")})

    @property
    def state(self) -> LaunchState:
        """The launch state; there is one as soon as a launch has begun."""
        assert self.record.state is not None
        return self.record.state


def _read(run: Storage) -> LaunchRecord:
    try:
        values = run.read_object(KEY)
    except NotFound:
        return LaunchRecord()
    number = values.pop("format", 1)  # the first format did not name itself
    if number != FORMAT:
        raise ConfigError(
            f"{KEY} in {run.url} has format {number}, and this release reads format {FORMAT}; let the run end with "
            f"the release that began it, or delete {KEY}: a TrainJob that still runs is then found by its labels"
        )
    try:
        return _RECORD.validate_python(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise ConfigError(
            f"{KEY} in {run.url} is damaged ({where}: {problem['msg']}); delete it: a TrainJob that still runs is then "
            "found by its labels"
        ) from None
