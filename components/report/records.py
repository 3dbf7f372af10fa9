"""Reads the records of a run, whatever is there: the report is written even if half of them are missing.

A file that is absent or unreadable, and a line that does not fit, is skipped and listed in `Records.missing`; nothing
here raises for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from components.accounting.bill import Planned
from components.accounting.ledger import LEDGER, LedgerLine, read_ledger
from components.dataset.versions import SETS, Dataset, read_version, version_key
from components.errors import DarkroomError, NotFound
from components.html.formatting import printable
from components.model.champion import Champion, read_champion
from components.model.metric_results import EVALUATION, FORMAT, MetricResult
from components.storage.base import Storage

R = TypeVar("R", bound=BaseModel)
ABSENT = "does not exist"
DEEPEST = 40  # levels of a JSON value; what is nested deeper was not written by any step

Seconds = Annotated[float, Field(ge=0, le=1e9)]
Time = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970, up to the year 5138
Whole = Annotated[int, Field(ge=0, le=10**15)]
Quantity = Annotated[float, Field(ge=-1e30, le=1e30)]


class Record(BaseModel):
    """One JSON object of the run; names that the report does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StepRecord(Record):
    """How one step, or one group of it, went."""

    step: str
    group: str | None = None
    status: str
    started: Time
    seconds: Seconds
    result: dict[str, Any] | None = None
    error: str | None = None


class StepMetrics(Record):
    """One optimizer step, or one measurement of the loss on held-out samples after it.

    ``weights`` is ``ema`` if the loss is that of the moving average, as earlier versions did not measure it.
    """

    step: Whole
    loss: Quantity | None = None
    lr: Quantity | None = None
    grad_norm: Quantity | None = None
    samples: Whole = 0
    seconds: Seconds = 0.0
    data_wait: Seconds | None = None
    checkpoint_stall: Seconds | None = None
    mfu: Quantity | None = None
    weights: str | None = None


class RunEvent(Record):
    """One thing that happened to the training."""

    time: Time
    event: str
    ranks: Whole | None = None
    rank: Whole | None = None
    step: Whole | None = None
    steps_lost: Whole | None = None
    exit_code: int | None = None


class SampleImages(Record):
    """Images drawn while training: one contact sheet per moment, one tile per prompt."""

    prompts: list[str]
    size: tuple[Whole, Whole]
    steps: list[Whole]


class EvaluatedPrompt(Record):
    """A prompt of the evaluation, and the values of the metrics that have one for a single prompt."""

    prompt: str
    images: Whole
    sheet: str | None = None
    metrics: dict[str, Quantity] = {}


class Evaluation(Record):
    """What ``evaluation.json`` says.

    Attributes:
        format: Other formats are rejected.
        prompts: What was drawn.
        size: Height and width of an image in pixels.
        metrics: What was measured, by name.
        decided_by: Names of the metrics that promotion depends on.
        better: Whether the model is better than the champion.
        reason: Why it is, or is not.
        weights_sha256: Digest of the weights that were measured.
        base_share: Share of the base's weights in them.
    """

    format: int = Field(1, validate_default=True)
    prompts: list[EvaluatedPrompt] = []
    size: tuple[Whole, Whole] | None = None
    metrics: dict[str, MetricResult] = {}
    decided_by: list[str] = []
    better: bool | None = None
    reason: str | None = None
    weights_sha256: str | None = None
    base_share: Annotated[float, Field(ge=0, le=1)] | None = None

    @field_validator("format")
    @classmethod
    def _is_current(cls, version: int) -> int:
        if version != FORMAT:
            raise ValueError(f"this version of Darkroom reads format {FORMAT}, not {version}; evaluate again")
        return version


class Rejected(Record):
    """An image that was rejected."""

    name: str
    step: str = ""
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Records:
    """All records of a run; ``missing`` says why for each file that could not be read in full."""

    run: str
    config: dict[str, Any] | None = None
    steps: tuple[StepRecord, ...] = ()
    metrics: tuple[StepMetrics, ...] = ()
    validation: tuple[StepMetrics, ...] = ()
    events: tuple[RunEvent, ...] = ()
    ledger: tuple[LedgerLine, ...] = ()
    plan: Planned | None = None
    samples: SampleImages | None = None
    evaluation: Evaluation | None = None
    dataset: Dataset | None = None
    rejected: tuple[Rejected, ...] = ()
    champion: Champion | None = None
    missing: dict[str, str] = field(default_factory=dict)


def read_records(workdir: Storage, run: str) -> Records:
    """Read everything that the report of a run is made from."""
    read = _Reader(workdir)
    folder = f"runs/{run}"
    config = read.json(f"{folder}/config.json")
    steps = _of_last_start(read.each(f"{folder}/steps/", StepRecord))
    key, caption_set, digest = (
        _result_of(steps, "index", name) for name in ("encoding_key", "caption_set", "dataset_digest")
    )
    dataset, rejected = read.dataset(key, caption_set, digest, _result_of(steps, "ingest", "source_id"))
    name = config.get("name") if isinstance(config, dict) else None
    return Records(
        run=printable(run),
        config=config if isinstance(config, dict) else None,
        steps=steps,
        metrics=_last_of_each_step(read.lines(f"{folder}/metrics.jsonl", StepMetrics)),
        validation=_last_of_each_step(read.lines(f"{folder}/validation.jsonl", StepMetrics, optional=True)),
        events=tuple(sorted(read.lines(f"{folder}/events.jsonl", RunEvent), key=lambda event: event.time)),
        ledger=read.ledger(folder),
        plan=read.one(f"{folder}/plan.json", Planned, optional=True),
        samples=read.one(f"{folder}/samples/index.json", SampleImages),
        evaluation=read.one(f"{folder}/{EVALUATION}", Evaluation),
        dataset=dataset,
        rejected=rejected,
        champion=read.champion(name) if isinstance(name, str) else None,
        missing=read.missing,
    )


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.missing: dict[str, str] = {}

    def json(self, key: str, optional: bool = False) -> Any:
        try:
            return _clean(self._storage.read_json(key))
        except (DarkroomError, RecursionError) as error:
            if not (optional and isinstance(error, NotFound)):
                self._note(key, error)
            return None

    def one(self, key: str, model: type[R], optional: bool = False) -> R | None:
        value = self.json(key, optional)
        try:
            if printable(key) in self.missing or (optional and value is None):
                return None
            return model.model_validate(value)
        except ValidationError as error:
            self.missing[printable(key)] = _misfit(error)
            return None

    def each(self, prefix: str, model: type[R]) -> Iterator[R]:
        try:
            keys = [entry.key for entry in self._storage.list(prefix) if entry.key.endswith(".json")]
        except DarkroomError as error:
            self._note(prefix, error)
            return
        for key in keys:
            if (record := self.one(key, model)) is not None:
                yield record

    def lines(self, key: str, model: type[R], optional: bool = False) -> tuple[R, ...]:
        """Read all lines that fit: a line that was torn when its writer was killed does not lose the others."""
        records: list[R] = []
        misfits: list[str] = []
        try:
            lines = self._storage.read(key).split(b"\n")
        except DarkroomError as error:
            if not (optional and isinstance(error, NotFound)):
                self._note(key, error)
            return ()
        for number, line in enumerate(lines, start=1):
            try:
                if line:
                    records.append(model.model_validate(_clean(json.loads(line))))
            except (ValueError, RecursionError) as error:
                misfits.append(f"line {number}: {_misfit(error)}")
        if misfits:
            self.missing[printable(key)] = f"has lines that do not fit: {len(misfits)}; {misfits[0]}"
        return tuple(records)

    def records(self, key: str, model: type[R]) -> tuple[R, ...]:
        """Read lines that were written at once, with a checksum: all or none."""
        try:
            return tuple(model.model_validate(_clean(record)) for record in self._storage.read_records(key))
        except ValidationError as error:
            self.missing[printable(key)] = _misfit(error)
        except DarkroomError as error:
            self._note(key, error)
        return ()

    def ledger(self, run: str) -> tuple[LedgerLine, ...]:
        """Read the whole ledger, or nothing: sums over a part of it would be wrong."""
        key = f"{run}/{LEDGER}"
        try:
            if not self._storage.exists(key):
                self.missing[printable(key)] = ABSENT
                return ()
            lines = read_ledger(self._storage.child(run))
            return tuple(LedgerLine.model_validate(_clean(line.model_dump())) for line in lines)
        except DarkroomError as error:
            self._note(key, error)
            return ()

    def champion(self, name: str) -> Champion | None:
        try:
            return read_champion(self._storage, name)
        except DarkroomError as error:
            self._note(f"models/{name}/champion.json", error)
            return None

    def dataset(
        self, encoding_key: str | None, caption_set: str | None, digest: str | None, source_id: str | None
    ) -> tuple[Dataset | None, tuple[Rejected, ...]]:
        """Read the version that the run committed and its rejections, or those of ingest if there is no dataset."""
        if encoding_key is None or caption_set is None or digest is None:
            return None, self.records(f"ingest/{source_id}/rejected.jsonl", Rejected) if source_id is not None else ()
        dataset = None
        folder = f"datasets/{encoding_key}"
        try:
            dataset = read_version(self._storage.child(folder), digest)
        except DarkroomError as error:
            self._note(f"{folder}/{version_key(digest)}", error)
        return dataset, self.records(f"{folder}/{SETS}/{caption_set}/rejected.jsonl", Rejected)

    def _note(self, key: str, error: Exception) -> None:
        self.missing[printable(key)] = ABSENT if isinstance(error, NotFound) else printable(str(error))


def _of_last_start(records: Iterable[StepRecord]) -> tuple[StepRecord, ...]:
    """Return the records in order, without those of an earlier start of the same run: ingest begins each start."""
    steps = sorted(records, key=lambda record: record.started)
    begin = next((record.started for record in steps if record.step == "ingest"), 0.0)
    return tuple(record for record in steps if record.started >= begin)


def _last_of_each_step(metrics: tuple[StepMetrics, ...]) -> tuple[StepMetrics, ...]:
    """Return one record per step: steps that a crash undid were repeated, and the last time counts."""
    by_step = {metric.step: metric for metric in metrics}
    return tuple(by_step[step] for step in sorted(by_step))


def _result_of(steps: tuple[StepRecord, ...], step: str, name: str) -> str | None:
    """Return a text from a step's result; other steps' results may be older than this run."""
    results = [record.result or {} for record in steps if record.step == step]
    return next((value for result in results if isinstance(value := result.get(name), str)), None)


def _misfit(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return printable(str(error))
    problem = error.errors(include_url=False)[0]
    path = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    return printable(f"{path}: {message}" if path else message)


def _clean(value: Any, depth: int = 0) -> Any:
    """Return a JSON value that can be shown and written again: text printable, numbers finite, not too deep."""
    match value:
        case str():
            return printable(value)
        case dict() | list() if depth >= DEEPEST:
            return "…"
        case dict():
            return {printable(name): _clean(item, depth + 1) for name, item in value.items()}
        case list():
            return [_clean(item, depth + 1) for item in value]
        case float() if not math.isfinite(value):  # training that diverges writes NaN, and JSON has no such number
            return None
        case int() if abs(value) >= 2**63:
            return str(value)
    return value
