"""What was measured of a model, in a form that explains itself: readers need to know no metric by name.

`evaluation.json` and ``champion.json`` hold one `MetricResult` per metric. Report, model card, promotion and command
line show whatever is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from components.errors import DamagedFile, DataError, NotFound
from components.storage.base import Storage

EVALUATION = "evaluation/evaluation.json"
# The format of evaluation.json; it goes up whenever a key gets another name or meaning.
FORMAT = 2

Direction = Literal["higher", "lower"]
Unit = Literal["share", "number"]
Value = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]


@dataclass(frozen=True)
class MetricResult:
    """One metric of one model.

    Attributes:
        label: The metric's name, for a person.
        description: What it measures.
        unit: ``share`` is a number in 0..1 that people read as a percentage.
        direction: Whether the better of two models has the higher or the lower value.
        estimator: How the value was computed.
        samples: Generated images that the value rests on.
        status: ``not run`` if there is no value.
        value: The result; None if it could not be measured.
        reference: The same measure on real images; None if it could not be measured.
        reference_label: Which real images the reference is about.
        reason: Why there is no value, or no reference; empty if there are both.
        judge: Who or what decides about an image, as it follows "judged by"; empty if nobody does.
        caveat: What the value does not show, in whole sentences; empty if there is nothing to warn of.
    """

    label: str
    description: str
    unit: Unit
    direction: Direction
    estimator: str
    samples: Annotated[int, Field(ge=0, le=10**15)]
    status: Literal["measured", "not run"]
    value: Value | None
    reference: Value | None
    reference_label: str
    reason: str
    judge: str = ""
    caveat: str = ""

    # For pydantic, which checks what is read from a file.
    __pydantic_config__ = ConfigDict(extra="ignore")


Metrics = Mapping[str, MetricResult]
_METRICS = TypeAdapter(dict[str, MetricResult])


class _Measured(BaseModel):
    """What publish needs of an evaluation; there is more."""

    step: Annotated[int, Field(ge=0)]
    base_model: str
    measurement: str
    dataset_digest: str
    weights_sha256: str
    metrics: dict[str, MetricResult]


def parse_metrics(values: object) -> dict[str, MetricResult]:
    """Return metrics by name from plain JSON.

    Raises:
        ValueError: If they are not what `plain_metrics` returns.
    """
    try:
        return _METRICS.validate_python(values)
    except ValidationError as error:
        raise ValueError(_problem(error)) from None


def plain_metrics(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Return metrics as plain JSON."""
    return {name: asdict(result) for name, result in metrics.items()}


def read_evaluation(run: Storage) -> dict[str, Any]:
    """Read the ``evaluation.json`` of a run's folder.

    Raises:
        DataError: If the run was not evaluated, or by a Darkroom that wrote another format.
        DamagedFile: If it is not what was written.
    """
    evaluation = read_earlier_evaluation(run)
    if not evaluation:
        raise DataError(f"{run.url} was not evaluated ({EVALUATION} does not exist); run the evaluate step")
    version = evaluation.get("format", 1)
    if version != FORMAT:
        raise DataError(
            f"{run.url}/{EVALUATION} has format {version}, this version of Darkroom reads format {FORMAT}; "
            "run the evaluate step again"
        )
    try:
        _Measured.model_validate(evaluation)
    except ValidationError as error:
        raise _damage(run, _problem(error)) from None
    return evaluation


def read_earlier_evaluation(run: Storage) -> dict[str, Any]:
    """Read the ``evaluation.json`` of a run's folder in whatever format; empty if there is none.

    Raises:
        DamagedFile: If it is not what was written.
    """
    try:
        evaluation = run.read_json(EVALUATION)
    except NotFound:
        return {}
    if not isinstance(evaluation, dict) or not evaluation:
        raise _damage(run, f"it holds {str(evaluation)[:20]}, expected an object")
    return evaluation


def _problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _damage(run: Storage, problem: str) -> DamagedFile:
    return DamagedFile(f"{EVALUATION} in {run.url} is damaged ({problem}); delete it and run the evaluate step again")
