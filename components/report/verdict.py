"""What a person reads first: how the run ended, what came of it, the few numbers that matter. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from components.html.formatting import count, duration, number, one_line, percent, plural, usd


class Badge(NamedTuple):
    """The outcome in two words; ``kind`` is ``good``, ``fair`` or ``bad``."""

    kind: str
    text: str


class Figure(NamedTuple):
    """One number with its name and what to read it against."""

    label: str
    value: str
    notes: tuple[str, ...]


def title(numbers: Mapping[str, Any]) -> str:
    """Return the name of the model that was trained, or of the run where no name is known."""
    name = (numbers["config"] or {}).get("name")
    return one_line(name if isinstance(name, str) and name.strip() else numbers["run"])


def badge(numbers: Mapping[str, Any]) -> Badge:
    """Return how the run ended."""
    if numbers["error"]:
        return Badge("bad", f"Failed in {numbers['error']['step']}")
    if numbers["published"]:
        return Badge("good", "Published")
    return Badge("fair", "Not published")


def headline(numbers: Mapping[str, Any]) -> str:
    """Return what the model can do, in one sentence."""
    accuracy, steps = numbers["prompt_accuracy"], numbers["steps"]
    if accuracy is not None:
        drawn = f": {numbers['correct']:,} of {numbers['generated']:,}" if numbers["correct"] is not None else ""
        return f"{percent(accuracy)} of the images that it draws show what the prompt asks for{drawn}."
    distance, reference = numbers["frechet_distance"], numbers["frechet_reference"]
    if distance is not None:
        beside = f"; real ones score {number(reference)}" if reference is not None else ""
        return f"Its images lie at a Fréchet distance of {number(distance)} from real ones{beside}."
    if steps:
        evaluated = "nothing could be measured" if numbers["better"] is not None else "it has not been evaluated"
        return f"It was trained for {plural(steps, 'step')}, and {evaluated}."
    return "Its training did not begin."


def origin(numbers: Mapping[str, Any]) -> str:
    """Return what was trained on what, in one line."""
    config = numbers["config"] or {}
    model = config.get("model")
    base = model.get("base") if isinstance(model, dict) else None
    told = [f"from {one_line(base)}" if isinstance(base, str) and base else "from scratch" if config else ""]
    if numbers["steps"]:
        told.append(plural(numbers["steps"], "step"))
    if numbers["images"] is not None:
        told.append(f"{plural(numbers['images'] - (numbers['held_out'] or 0), 'image')}")
    if "seed" in config:
        told.append(f"seed {config['seed']}")
    return " · ".join(part for part in told if part)


def publication(numbers: Mapping[str, Any]) -> str:
    """Return why nothing was published; empty where something was."""
    if numbers["published"]:
        return ""
    if numbers["error"]:
        return f"Nothing was published, since {numbers['error']['step']} failed."
    if numbers["better"] is None:
        return "Nothing was published, since the model was not evaluated."
    if not numbers["better"]:
        return f"Nothing was published: {numbers['reason'] or 'the model is not better than the champion'}"
    return "The model is good enough, but no publish step left a record."


def figures(numbers: Mapping[str, Any]) -> list[Figure]:
    """Return the numbers that matter most."""
    known = {name: value for name, value in numbers.items() if value is not None}
    return [
        Figure(
            "Prompt accuracy",
            percent(numbers["prompt_accuracy"]),
            _if(known, judge_accuracy=lambda share: f"the judge reads {percent(share)} of real ones"),
        ),
        Figure(
            "Fréchet distance",
            number(numbers["frechet_distance"]),
            _if(known, frechet_reference=lambda distance: f"real images score {number(distance)}"),
        ),
        Figure(
            "Images",
            count(numbers["images"]),
            _if(known, held_out=lambda n: f"{count(n)} held out", rejected=lambda n: f"{count(n)} rejected"),
        ),
        Figure(
            "Training",
            plural(numbers["steps"], "step"),
            _if(
                known,
                samples_per_second=lambda speed: f"{number(speed)} images per second",
                mfu=lambda share: f"{percent(share)} of the peak FLOP/s",
            ),
        ),
        Figure(
            "Wall time",
            duration(numbers["wall_seconds"]),
            _if(
                known,
                goodput=lambda share: f"{percent(share)} goodput in training",
                data_wait_share=lambda share: f"{percent(share)} waiting for data",
                checkpoint_stall_share=lambda share: f"{percent(share)} for checkpoints",
            ),
        ),
        _interrupted(known),
    ]


def _interrupted(known: Mapping[str, Any]) -> Figure:
    """Return how often training was interrupted; where it is paid for, what it cost, with that as a note."""
    lost = f"{plural(known['steps_lost'], 'step')} lost"
    if "usd" not in known:
        return Figure("Preemptions", count(known["preemptions"]), (lost,))
    notes = _if(
        known,
        usd_per_useful_hour=lambda price: f"{usd(price)} per useful hour",
        usd_per_1000_images=lambda price: f"{usd(price)} per 1,000 images",
        preemptions=lambda times: f"{plural(times, 'preemption')}, {lost}",
    )
    return Figure("Cost", usd(known["usd"]), notes)


def _if(known: Mapping[str, Any], **notes: Any) -> tuple[str, ...]:
    return tuple(say(known[name]) for name, say in notes.items() if name in known)
