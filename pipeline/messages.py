"""What the terminal says of a run: what came out of each step, what happened to the training, and the closing table.

Pure: events and results go in, short plain text comes out. Only names may be hostile, and they come out printable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.command import load_step
from components.errors import Preempted
from components.evaluate.summary import metric_rows
from components.html import formatting

Values = Mapping[str, Any]
# Shows a person one line.
PrintLine = Callable[[str], None]

# Characters for the times of the steps, so that a line of the closing table is at most 80 wide.
_MOST_CHARACTERS = 50
# How many of the reasons for which images were rejected are shown; the report has all.
_REASONS = 3

# Events that other lines say better, or that only the log needs.
_NOT_SHOWN = frozenset(
    {
        "attempt-started", "autoencoder", "caption-lengths", "checkpoint", "compared", "done", "finished", "layout",
        "loading", "preempted", "rank-started", "reported", "samples", "source", "stop-asked", "validation",
    }
)  # fmt: skip


def title(event: Values) -> str:
    """Return a step's name with its group, such as ``latents 003``."""
    return str(event["step"]) if event.get("group") is None else f"{event['step']} {event['group']}"


def duration(seconds: float) -> str:
    """Return a length of time with two units at most, such as ``3 min 41 s``."""
    return _plain_spaces(formatting.duration(seconds)) if seconds >= 0.05 else "0.0 s"


def line(text: str) -> str:
    """Return printable text on one line: control characters and line breaks become visible escapes."""
    return formatting.one_line(text)


def step_summary(step: str, result: Values, events: Values) -> str:
    """Return what came out of a step in a few words, as its declaration says them.

    Args:
        step: Its name.
        result: What it returned.
        events: The newest of its events of each kind, by the kind's name.
    """
    return line(_plain_spaces(load_step(step).summary(result, events)))


def event_line(event: Values) -> str | None:
    """Return the line for an event of a step, or None if a person need not read of it."""
    name = event["event"]
    if name in _NOT_SHOWN:
        return None
    if name == "spot-notice":
        return f"spot notice to rank {event['rank']} at step {count(event['step'])}"
    if name == "resumed":
        if event["step"] == 0:
            more = len(event["skipped"]) - 1
            return line(f"begun anew: {event['skipped'][0]}" + (f", and {more} older" if more > 0 else ""))
        skipped = "".join(f"; skipped: {reason}" for reason in event["skipped"])
        return line(f"resumed at step {count(event['step'])}{skipped}")
    if name == "continued":
        return line(f"continues {event['run']} from step {count(event['step'])}")
    if name == "dataset-changed":
        kept = f"; the training before is kept as {event['kept_as']}" if event["kept_as"] else ""
        return line(f"begun anew: the dataset is {event['now'][:12]}, not {event['before'][:12]} any more{kept}")
    if name == "attempt-ended":
        return _attempt_ended(event)
    if name == "training":
        return _training(event)
    if name == "warning":
        return line(f"warning: {event['text']}")
    fields = [f"{key} {value}" for key, value in event.items() if key not in ("event", "by")]
    return line(f"{name}: {', '.join(fields)}".replace("_", " "))


def _training(event: Values) -> str | None:
    if event["step"]:
        return None  # it goes on; the first attempt said it
    times = formatting.number(event["epochs"])
    return f"{plural(event['steps'], 'step')}: each of {plural(event['samples'], 'sample')} is seen {times} times"


def _attempt_ended(event: Values) -> str | None:
    code = event["exit_code"]
    if code == 0:
        return None
    end = "preempted" if code == Preempted.exit_code else f"crashed (exit code {code})"
    return f"{end} at step {count(event['step'])}, {plural(event['steps_lost'], 'step')} lost"


def closing_rows(numbers: Values, seconds: Mapping[str, float], total: float) -> Iterator[tuple[str, str]]:
    """Yield the closing table of a finished run, as pairs of a name and a line.

    Args:
        numbers: Those of ``report.json``.
        seconds: Wall time of each step.
        total: Wall time of everything.
    """
    yield "images", f"{count(numbers['images'])}, of which {count(numbers['encoded'])} encoded now"
    yield "rejected", _rejected(numbers)
    lengths = numbers.get("caption_lengths") or {}
    if lengths.get("cut"):
        share = f"{count(lengths['cut'])} of {count(lengths['captions'])} at {count(lengths['tokens'])} tokens"
        yield "captions cut", f"{share}; latents.text_chunks reads more"
    yield "training", f"{plural(numbers['steps'], 'step')}{_interruptions(numbers)}"
    yield "speed", _speed(numbers)
    yield from ((line(label), line(text)) for label, text in metric_rows(numbers["metrics"]))
    if numbers["published"] is not None:
        yield "published", line(numbers["published"])
    else:
        yield "not published", line(numbers["reason"] or "it was not evaluated")
    if numbers.get("usd") is not None:
        yield "cost", _cost(numbers)
    yield "time", duration(total) + _longest(seconds)


def count(number: float | None) -> str:
    """Return a whole number with separators between thousands."""
    return formatting.count(number)


def plural(number: int, noun: str) -> str:
    """Return a counted noun whose plural ends in s."""
    return _plain_spaces(formatting.plural(number, noun))


def _plain_spaces(text: str) -> str:
    # A terminal does not break our lines, and a person who searches a log types plain spaces.
    return text.replace(formatting.SPACE, " ")


def _rejected(numbers: Values) -> str:
    reasons = [f"{count(of)} {reason}" for reason, of in numbers["rejected_by_reason"].items()]
    more = ", …" if len(reasons) > _REASONS else ""
    return count(numbers["rejected"]) + line(f" ({', '.join(reasons[:_REASONS])}{more})" if reasons else "")


def _interruptions(numbers: Values) -> str:
    if not numbers["preemptions"] and not numbers["steps_lost"]:
        return ""
    return f", {plural(numbers['preemptions'], 'preemption')}, {plural(numbers['steps_lost'], 'step')} lost"


def _speed(numbers: Values) -> str:
    if numbers["samples_per_second"] is None:
        return "not measured"
    share = "" if numbers["goodput"] is None else f", goodput {formatting.percent(numbers['goodput'])}"
    return _plain_spaces(f"{count(numbers['samples_per_second'])} images/s in training{share}")


def _longest(seconds: Mapping[str, float]) -> str:
    """Return the steps that took longest, as many as fit."""
    text = ""
    for step, part in sorted(seconds.items(), key=lambda item: -item[1]):
        longer = f"{text}{', ' if text else ' ('}{step} {duration(part)}"
        if len(longer) > _MOST_CHARACTERS:
            break
        text = longer
    return f"{text})" if text else ""


def _cost(numbers: Values) -> str:
    per = numbers["usd_per_1000_images"]
    return formatting.usd(numbers["usd"]) + ("" if per is None else f", {formatting.usd(per)} per 1,000 images")
