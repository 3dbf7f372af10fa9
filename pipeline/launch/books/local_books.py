"""The local launcher's open attempt, kept in a file, so that a launcher that is killed leaves its time in the books.

``runs/<run>/local-attempt.json`` exists while an attempt is not closed. The launcher writes it before it starts the
ranks and every `BEAT_SECONDS` from then on. What a launcher that was killed left there, the next one closes before it
does anything else. The end is fixed in the file before the ledger is touched, so a launcher that is killed while it
closes the books changes nothing: the next one writes the same lines, each once.

Of an attempt whose launcher was killed at most the last `BEAT_SECONDS` are missing, and the half second in which its
ranks notice that it is gone; nothing is ever booked that did not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.errors import DataError, NotFound, StorageError
from components.storage.base import Storage
from pipeline.launch.books import accounting
from pipeline.launch.books.accounting import EVENTS, EndedAttempt, PricedNodes

KEY = "local-attempt.json"
FORMAT = 1
BEAT_SECONDS = 5.0
# The exit code of an attempt whose end nobody saw: as a shell tells a death by SIGKILL.
_KILLED = 137


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended: its exit code, and the launcher's own events with their times."""

    exit_code: int
    events: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class LocalAttemptRecord:
    """An attempt whose books are not closed; times are in seconds since 1970.

    Attributes:
        number: Its number, from 0.
        beat_at: When this was written.
        seconds: How long the attempt had run by then, by a clock that never goes backwards.
        idle_seconds: How long nothing had run before it.
        start_step: Step of the checkpoint that it resumed from.
        usd_per_hour: Price of this machine.
        ranks: How many processes train.
        end: How it ended; None while it runs, or if its launcher was killed.
    """

    number: int
    beat_at: float
    seconds: float
    idle_seconds: float
    start_step: int
    usd_per_hour: float
    ranks: int
    end: AttemptEnd | None = None


_RECORD = TypeAdapter(LocalAttemptRecord)


class LocalBooks:
    """Keeps the record of the open attempt, and closes it.

    Args:
        run: The run's folder.
        clock: Seconds that never go backwards.
        wall_clock: Seconds since 1970.
        on_problem: Called with the reason if a beat cannot be written, once until it works again.
    """

    def __init__(
        self,
        run: Storage,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_problem: Callable[[str], object] = lambda _problem: None,
    ) -> None:
        self._run = run
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_problem = on_problem
        self._has_problem = False
        self._record: LocalAttemptRecord | None = None
        self._started_at = self._beat_at = 0.0  # by the clock

    def open(self, number: int, start_step: int, idle_seconds: float, usd_per_hour: float, ranks: int) -> None:
        """Begin an attempt: from now on its time is paid for."""
        self._started_at = self._beat_at = self._clock()
        self._write(LocalAttemptRecord(number, self._wall_clock(), 0.0, idle_seconds, start_step, usd_per_hour, ranks))

    @property
    def seconds(self) -> float:
        """How long the open attempt has run."""
        return self._clock() - self._started_at

    def beat(self) -> None:
        """Record that the open attempt still runs, if the last beat is old enough."""
        assert self._record is not None, "no attempt is open"
        if self._clock() - self._beat_at < BEAT_SECONDS:
            return
        self._beat_at = self._clock()
        try:
            self._write(replace(self._record, beat_at=self._wall_clock(), seconds=self.seconds))
            self._has_problem = False
        except StorageError as error:  # training goes on while the store is away
            if not self._has_problem:
                self._on_problem(str(error))
            self._has_problem = True

    def discard(self) -> None:
        """Forget the open attempt: nothing ran in it."""
        self._record = None
        self._run.delete(KEY)

    def close(self, exit_code: int, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Close the open attempt, which has ended now; return the fields of the event ``attempt-ended``."""
        assert self._record is not None, "no attempt is open"
        end = AttemptEnd(exit_code, tuple(dict(event) for event in events))
        self._write(replace(self._record, beat_at=self._wall_clock(), seconds=self.seconds, end=end))
        return self._close(self._record)

    def recover(self) -> dict[str, Any] | None:
        """Close the attempt that a killed launcher left open.

        Returns:
            The fields of the event ``attempt-ended``; None if no attempt is open.

        Raises:
            DataError: If the record of it cannot be read.
        """
        record = _read(self._run)
        if record is None:
            return None
        if record.end is None:
            self._write(_ended(self._run, record))
            assert self._record is not None
            record = self._record
        return self._close(record)

    def _close(self, record: LocalAttemptRecord) -> dict[str, Any]:
        assert record.end is not None
        attempt = EndedAttempt(
            record.number,
            record.beat_at - record.seconds,
            record.beat_at,
            record.end.exit_code,
            record.start_step,
            {"idle": record.idle_seconds},
            record.end.events,
        )
        fields = accounting.close_attempt(self._run, attempt, PricedNodes(1, "local", None, record.usd_per_hour))
        self.discard()
        return fields

    def _write(self, record: LocalAttemptRecord) -> None:
        self._run.write_json(KEY, {"format": FORMAT, **_RECORD.dump_python(record, mode="json")})
        self._record = record


def _ended(run: Storage, record: LocalAttemptRecord) -> LocalAttemptRecord:
    """Return the record of an attempt whose launcher was killed, with the end that the trainer's events show.

    Events after the next beat would have been due are not this attempt's.
    """
    events = accounting.read_lines(run, EVENTS)
    times = [float(event["time"]) for event in events if "time" in event]
    ended_at = max((time for time in times if record.beat_at < time <= record.beat_at + BEAT_SECONDS), default=0.0)
    ended_at = max(ended_at, record.beat_at)
    seconds = record.seconds + (ended_at - record.beat_at)
    started_at = ended_at - seconds
    start = {"time": started_at, "event": "attempt-started", "ranks": record.ranks}
    is_started = any(event["event"] == start["event"] and event.get("attempt") == record.number for event in events)
    exit_code = accounting.exit_code_from_events(run, started_at, _KILLED)
    end = AttemptEnd(exit_code, () if is_started else (start,))
    return replace(record, beat_at=ended_at, seconds=seconds, end=end)


def _read(run: Storage) -> LocalAttemptRecord | None:
    try:
        values = run.read_object(KEY)
    except NotFound:
        return None
    if values.pop("format", None) != FORMAT:
        raise DataError(f"{KEY} in {run.url} is not of format {FORMAT}; {_ADVICE}")
    try:
        return _RECORD.validate_python(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise DataError(f"{KEY} in {run.url} is damaged ({where}: {problem['msg']}); {_ADVICE}") from None


_ADVICE = "it holds the time of an attempt that is not in the ledger yet: repair it, or delete it to lose that time"
