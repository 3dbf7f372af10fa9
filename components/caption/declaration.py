"""How the pipeline runs the caption step: group by group, on a GPU if models write or judge captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.caption.config import CaptionConfig
from components.command import Problem, Result, Step, StepRun, setting
from components.html.formatting import count
from components.image.decoding import ImageLimits
from components.settings import Settings


def _run(step: StepRun) -> Result:
    from components.caption.group import caption

    config = setting(step.settings, "caption", CaptionConfig)
    limits = setting(step.settings, "ingest.limits", ImageLimits)
    return caption(config, limits, step.group, step.source_id, step.caption_set, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    reused = f", {count(result['reused'])} reused" if result["reused"] else ""
    return f"{count(result['captioned'])} captioned{reused}, {count(result['rejected'])} rejected"


def _check(step: StepRun) -> Iterator[Problem]:
    from components.caption.checks import model_problems

    return model_problems(setting(step.settings, "caption", CaptionConfig), step.workdir)


def _check_images(step: StepRun) -> Iterator[Problem]:
    from components.caption.checks import caption_problems

    return caption_problems(setting(step.settings, "caption", CaptionConfig), step.workdir, step.source_id)


def _uses_gpu(settings: Settings) -> bool:
    return bool(setting(settings, "caption", CaptionConfig).captioners)


STEP = Step(
    "caption",
    _run,
    _summary,
    loads_models=True,
    uses_gpu=_uses_gpu,
    per_group=True,
    check=_check,
    check_images=_check_images,
)
