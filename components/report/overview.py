"""What a person reads first: how the run ended, what was measured, the main numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from components.html.badges import Badge
from components.html.formatting import SPACE, count, duration, number, one_line, percent, plural, quantity, usd
from components.model.metric_results import MetricResult, parse_metrics

# Metrics in the headline and among the figures, at most; the page has a table of all.
IN_HEADLINE = 2
IN_FIGURES = 4
EVALUATED_BEFORE = "This was measured before the run was last started, perhaps of other weights."


class Figure(NamedTuple):
    """One number with its name and what to compare it with."""

    label: str
    value: str
    notes: tuple[str, ...]


def title(numbers: Mapping[str, Any]) -> str:
    """Return the name of the model that was trained, or of the run if it has no name."""
    name = (numbers["config"] or {}).get("name")
    return one_line(name if isinstance(name, str) and name.strip() else numbers["run"])


def badge(numbers: Mapping[str, Any]) -> Badge:
    """Return how the run ended."""
    if numbers["error"]:
        return Badge("bad", f"Failed in {numbers['error']['step']}")
    if numbers["stopped"]:
        return Badge("fair", f"Stopped in {numbers['stopped']}")
    if numbers["status"] == "running":
        return Badge("fair", "Running")
    if numbers["published"]:
        return Badge("good", "Published")
    return Badge("fair", "Not published")


def headline(numbers: Mapping[str, Any]) -> str:
    """Return what was measured, in a sentence or two; it claims no more than that."""
    measured = [metric for metric in _metrics(numbers) if metric.value is not None]
    if measured:
        when = [EVALUATED_BEFORE] if numbers["evaluated_before"] else []
        return " ".join([*(f"{_measured(metric)}." for metric in measured[:IN_HEADLINE]), *when])
    if numbers["steps"]:
        evaluated = "nothing could be measured" if numbers["better"] is not None else "it has not been evaluated"
        return f"It was trained for {plural(numbers['steps'], 'step')}, and {evaluated}."
    return "Its training did not begin."


def _metrics(numbers: Mapping[str, Any]) -> list[MetricResult]:
    """Return the metrics, those that promotion depends on first."""
    metrics, first = parse_metrics(numbers["metrics"]), numbers["decided_by"]
    return [metrics[name] for name in sorted(metrics, key=lambda name: name not in first)]


def _measured(metric: MetricResult) -> str:
    value = f"{one_line(metric.label)} {quantity(metric.value, metric.unit)}{_judge(metric)}"
    return value if metric.reference is None else f"{value} ({_reference(metric)})"


def _judge(metric: MetricResult) -> str:
    return f", judged by {one_line(metric.judge)}" if metric.judge else ""


def _reference(metric: MetricResult) -> str:
    return f"{one_line(metric.reference_label)}: {quantity(metric.reference, metric.unit)}"


def origin(numbers: Mapping[str, Any]) -> str:
    """Return what was trained on what, in one line."""
    config = numbers["config"] or {}
    model = config.get("model")
    base = model.get("base") if isinstance(model, dict) else None
    continued = (config.get("train") or {}).get("continued") if isinstance(config.get("train"), dict) else None
    parts = [f"from {one_line(base)}" if isinstance(base, str) and base else "from scratch" if config else ""]
    if isinstance(continued, dict) and continued.get("run"):
        parts.append(f"continues {one_line(str(continued['run']))} from step {count(continued.get('step'))}")
    if numbers["steps"]:
        parts.append(plural(numbers["steps"], "step"))
    if numbers["images"] is not None:
        parts.append(f"{plural(numbers['images'] - (numbers['held_out'] or 0), 'image')}")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    return " · ".join(part for part in parts if part)


def publication(numbers: Mapping[str, Any]) -> str:
    """Return why the model was not published, and which one stays; empty if it was."""
    if numbers["published"]:
        return ""
    champion = f" The published model is still {one_line(numbers['champion'])}." if numbers["champion"] else ""
    return f"{_not_published(numbers)}{champion}"


def _not_published(numbers: Mapping[str, Any]) -> str:
    if numbers["error"]:
        return f"Nothing was published, since {numbers['error']['step']} failed."
    if numbers["stopped"]:
        return f"Nothing was published, since the run was stopped in {numbers['stopped']}; started again, it goes on."
    if numbers["status"] == "running":
        return "Nothing is published yet: the run goes on."
    if numbers["better"] is None:
        return "Nothing was published, since the model was not evaluated."
    if not numbers["better"]:
        return f"This model was not published: {numbers['reason'] or 'it is not better than the champion.'}"
    return "The model is good enough, but there is no record of the publish step."


def judges(numbers: Mapping[str, Any]) -> list[str]:
    """Return for each metric that somebody judges who it is and what that does not show, in sentences."""
    return [
        f"{one_line(metric.label)} is judged by {one_line(metric.judge)}. {one_line(metric.caveat)}".strip()
        for metric in _metrics(numbers)
        if metric.judge and metric.value is not None
    ]


def base_share(numbers: Mapping[str, Any]) -> str:
    """Return how much of the base the measured weights still hold, in a sentence; empty if it was not recorded."""
    share = numbers["base_share"]
    if share is None:
        return ""
    part = f"less than 0.1{SPACE}%" if share < 0.001 else percent(share)
    return f"Measured was the moving average of the weights; {part} of it is the base that training began with."


def figures(numbers: Mapping[str, Any]) -> list[Figure]:
    """Return the main numbers."""
    given = {name: value for name, value in numbers.items() if value is not None}
    return [
        *(_metric_figure(metric) for metric in _metrics(numbers)[:IN_FIGURES]),
        Figure(
            "Images",
            count(numbers["images"]),
            _if(given, held_out=lambda n: f"{count(n)} held out", rejected=lambda n: f"{count(n)} rejected"),
        ),
        Figure(
            "Training",
            plural(numbers["steps"], "step"),
            _if(
                given,
                validation_loss=lambda loss: f"held-out loss {number(loss)}",
                base_share=lambda share: f"{percent(share)} of the weights is still the base" if share >= 0.01 else "",
                samples_per_second=lambda speed: f"{number(speed)} images per second",
                mfu=lambda share: f"{percent(share)} of the peak FLOP/s",
            ),
        ),
        Figure(
            "Training time",
            duration(numbers["training_seconds"]),
            _if(
                given,
                attempts=lambda times: f"{plural(times, 'attempt')} in all",
                goodput=lambda share: f"{percent(share)} goodput",
                data_wait_share=lambda share: f"{percent(share)} waiting for data",
                checkpoint_stall_share=lambda share: f"{percent(share)} for checkpoints",
            ),
        ),
        Figure("Wall time", duration(numbers["wall_seconds"]), ("all steps, since the last start",)),
        _interrupted(given),
    ]


def _metric_figure(metric: MetricResult) -> Figure:
    notes = () if metric.reference is None else (_reference(metric),)
    return Figure(one_line(metric.label), quantity(metric.value, metric.unit), notes)


def _interrupted(given: Mapping[str, Any]) -> Figure:
    """Return how often training was interrupted; if it is paid for, its cost, with the interruptions as a note."""
    lost = f"{plural(given['steps_lost'], 'step')} lost"
    if "usd" not in given:
        return Figure("Preemptions", count(given["preemptions"]), (lost,))
    notes = _if(
        given,
        usd_per_useful_hour=lambda price: f"{usd(price)} per useful hour",
        usd_per_1000_images=lambda price: f"{usd(price)} per 1,000 images",
        preemptions=lambda times: f"{plural(times, 'preemption')}, {lost}",
    )
    return Figure("Cost", usd(given["usd"]), notes)


def _if(given: Mapping[str, Any], **notes: Any) -> tuple[str, ...]:
    return tuple(text for name, note in notes.items() if name in given and (text := note(given[name])))
