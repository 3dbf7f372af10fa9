"""The account of a run: its records in, the numbers of ``report.json`` out. Pure: no files, no clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.accounting.bill import bill, costs_money
from components.accounting.ledger import LedgerLine, by_state
from components.model.metric_results import plain_metrics
from components.report.attempts import Attempt, attempts
from components.report.records import Records, StepMetrics, StepRecord

# The format of report.json; it goes up whenever a key gets another name or meaning.
FORMAT = 3
FAILED, STOPPED = "failed", "stopped"
_ON_A_CLUSTER = ("pending", "pulling")
_DOLLARS = ("usd", "usd_per_useful_hour", "usd_per_1000_images")


@dataclass(frozen=True)
class Failure:
    """The first step that failed, and its error."""

    step: str
    message: str


def account(records: Records, status: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the numbers of a run; those without a record are None.

    Args:
        records: What the run left behind.
        status: How the pipeline ended, such as ``SUCCEEDED`` or ``FAILED``.
        versions: Versions of what the run was made with.

    Returns:
        A JSON object. Times are seconds; shares lie in 0..1; ``seconds`` of a step that ran in groups is their sum.
    """
    failed = failure(records, status)
    stopped = stop(records, status) if failed is None else None
    tries = attempts(records.events)
    ledger = ledger_seconds(records.ledger)
    return {
        "format": FORMAT,
        "run": records.run,
        "status": FAILED if failed else STOPPED if stopped else status.lower(),
        "error": asdict(failed) if failed else None,
        "stopped": stopped,
        "started": min((record.started for record in records.steps), default=None),
        "wall_seconds": wall_seconds(records.steps),
        **_evaluated(records),
        **_data(records),
        **_trained(records, tries, ledger),
        "seconds": step_seconds(records.steps),
        "ledger": ledger,
        **_paid(records),
        "published": published(records),
        "champion": str(records.champion.path) if records.champion else None,
        "versions": dict(versions),
        "config": records.config,
        "missing": dict(records.missing),
    }


def failure(records: Records, status: str) -> Failure | None:
    """Return the first step that failed; a failed run without a failed step has failed in the pipeline."""
    for record in records.steps:
        if record.status == FAILED:
            return Failure(step_name(record), record.error or "It recorded no error; its log may hold one.")
    if status.lower() in ("failed", "error") and stop(records, status) is None:
        last = f"The last step that left a record is {records.steps[-1].step}." if records.steps else "No step did."
        return Failure("the pipeline", f"It ended as {status}, and no step recorded an error. {last}")
    return None


def stop(records: Records, status: str) -> str | None:
    """Return the step in which the run was stopped by hand; None if it was not."""
    stopped = (step_name(record) for record in records.steps if record.status == STOPPED)
    return next(stopped, "the pipeline" if status.lower() == "cancelled" else None)


def step_name(record: StepRecord) -> str:
    """Return the step's name with its group, such as ``latents 003``."""
    return f"{record.step} {record.group}" if record.group else record.step


def wall_seconds(steps: Iterable[StepRecord]) -> float | None:
    """Return the time from the first step's start to the last one's end, since the run was last started."""
    spans = [(record.started, record.started + record.seconds) for record in steps]
    return max(end for _, end in spans) - min(start for start, _ in spans) if spans else None


def step_seconds(steps: Iterable[StepRecord]) -> dict[str, float]:
    """Return the seconds of each step, in the order of their first start."""
    seconds: dict[str, float] = {}
    for record in steps:
        seconds[record.step] = seconds.get(record.step, 0.0) + record.seconds
    return seconds


def ledger_seconds(lines: Iterable[LedgerLine]) -> dict[str, float]:
    """Return the training's wall seconds by state, in the order of the ledger's states; empty without a ledger.

    States that only a cluster has are omitted if they took no time.
    """
    return {
        state: sums.seconds for state, sums in by_state(lines).items() if sums.seconds or state not in _ON_A_CLUSTER
    }


def published(records: Records) -> str | None:
    """Return the folder of the published model that has the evaluated weights; None if they were not published.

    A run's name says nothing about that: a run that trains again keeps its name, and its new weights may be no better.
    """
    for record in records.steps:
        path = (record.result or {}).get("published")
        if record.step == "publish" and record.status not in (FAILED, STOPPED) and isinstance(path, str):
            return path
    champion, evaluation = records.champion, records.evaluation
    if champion is None or evaluation is None or champion.weights_sha256 != evaluation.weights_sha256:
        return None
    return str(champion.path)


def _evaluated(records: Records) -> dict[str, Any]:
    evaluation = records.evaluation
    if evaluation is None:
        nothing = dict.fromkeys(("generated", "better", "reason", "base_share"))
        return {"metrics": {}, "decided_by": [], "evaluated_before": False, **nothing}
    return {
        "metrics": plain_metrics(evaluation.metrics),
        "decided_by": evaluation.decided_by,
        "evaluated_before": bool(records.steps) and not any(_evaluates(record) for record in records.steps),
        "generated": sum(prompt.images for prompt in evaluation.prompts) or None,
        "better": evaluation.better,
        "reason": evaluation.reason,
        "base_share": evaluation.base_share,
    }


def _evaluates(record: StepRecord) -> bool:
    return record.step == "evaluate" and record.status != FAILED


def _data(records: Records) -> dict[str, Any]:
    dataset = records.dataset
    reasons = Counter(rejected.reason for rejected in records.rejected)
    rejected = dataset.rejected if dataset else _sum_of(records, "ingest", "rejected") or 0
    return {
        "images": dataset.images if dataset else _sum_of(records, "ingest", "images"),
        "held_out": dataset.held_out if dataset else None,
        "dataset_digest": dataset.digest if dataset else None,
        "rejected": max(rejected, len(records.rejected)),
        "rejected_by_reason": dict(reasons.most_common()),
        "captions_by": _captions_by(records),
        "caption_lengths": dict(dataset.caption_lengths) if dataset else {},
        "data_report": _data_report(records),
        "encoded": _sum_of(records, "latents", "encoded"),
        "reused": _sum_of(records, "latents", "reused"),
    }


def _captions_by(records: Records) -> dict[str, int]:
    """Return how many captions each author wrote, the busiest first."""
    results = [(record.result or {}).get("captions_by") for record in records.steps if record.step == "index"]
    counts = next((counts for counts in results if isinstance(counts, dict)), {})
    plain = {name: count for name, count in counts.items() if isinstance(count, int) and 0 < count < 1e15}
    return dict(sorted(plain.items(), key=lambda item: (-item[1], item[0])))


def _data_report(records: Records) -> str | None:
    """Return where the clean step's report is, below the workdir; the page links to no other path."""
    keys = [str((record.result or {}).get("report")) for record in records.steps if record.step == "clean"]
    return next((key for key in keys if re.fullmatch(r"captions/[\w-]+/[\w-]+/report\.html", key)), None)


def _trained(records: Records, tries: list[Attempt], ledger: Mapping[str, float]) -> dict[str, Any]:
    samples = sum(metric.samples for metric in records.metrics)
    # Without a ledger, the steps' own times are the best estimate of useful time.
    useful = ledger.get("useful") or sum(metric.seconds for metric in records.metrics)
    whole = sum(ledger.values())
    return {
        "steps": _steps_done(records, tries),
        "attempts": len(tries),
        "preemptions": sum(attempt.preempted for attempt in tries),
        "steps_lost": sum(attempt.steps_lost for attempt in tries),
        "training_seconds": whole if ledger else None,
        "goodput": ledger["useful"] / whole if whole > 0 else None,
        "samples_per_second": samples / useful if samples and useful > 0 else None,
        **_speed(records.metrics),
        **_held_out(records.validation),
    }


def _paid(records: Records) -> dict[str, Any]:
    """Return the bill, and the dollars that dashboards plot; those are None if nothing is paid for."""
    launch = (records.config or {}).get("launch")
    budget = launch.get("budget_usd") if isinstance(launch, dict) else None
    limit = float(budget) if isinstance(budget, int | float) and not isinstance(budget, bool) else None
    cost = bill(records.ledger, sum(metric.samples for metric in records.metrics), records.plan, limit)
    dollars = {name: cost[name] if costs_money(cost) else None for name in _DOLLARS}
    return {"cost": cost if records.ledger else None, **dollars}


def _speed(metrics: Sequence[StepMetrics]) -> dict[str, float | None]:
    """Return how well the time of the steps was used, if it was recorded; shares of the time with checkpoints."""
    timed = [metric for metric in metrics if metric.data_wait is not None]
    stall = sum(metric.checkpoint_stall or 0.0 for metric in timed)
    whole = sum(metric.seconds for metric in timed) + stall
    used = [(metric.mfu, metric.seconds) for metric in metrics if metric.mfu is not None]
    seconds = sum(length for _, length in used)
    return {
        "data_wait_share": sum(metric.data_wait or 0.0 for metric in timed) / whole if whole > 0 else None,
        "checkpoint_stall_share": stall / whole if whole > 0 else None,
        "mfu": sum(mfu * length for mfu, length in used) / seconds if seconds > 0 else None,
    }


def _held_out(validation: Sequence[StepMetrics]) -> dict[str, float | None]:
    losses = [(metric.loss, metric.step) for metric in validation if metric.loss is not None]
    best = min(losses, default=(None, None))
    return {
        "validation_loss": losses[-1][0] if losses else None,
        "validation_loss_best": best[0],
        "validation_loss_best_step": best[1],
    }


def _steps_done(records: Records, tries: list[Attempt]) -> int:
    """Return the optimizer steps that were done and kept; an attempt without a recorded end kept its metrics."""
    if tries and tries[-1].exit_code is not None and tries[-1].last_step is not None:
        return tries[-1].kept
    steps = [metric.step for metric in records.metrics] + [attempt.kept for attempt in tries]
    return max(steps, default=0)


def _sum_of(records: Records, step: str, name: str) -> int | None:
    """Return the sum of a whole number over the results of a step's groups; None if no result has it."""
    results = [record.result or {} for record in records.steps if record.step == step]
    numbers = [value for result in results if isinstance(value := result.get(name), int | float)]
    return round(sum(numbers)) if numbers and all(abs(value) < 1e15 for value in numbers) else None
