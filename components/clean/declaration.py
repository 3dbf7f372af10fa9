"""How the pipeline runs the clean step: once for all groups, after all of them have captions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from components.clean.config import CleanConfig
from components.command import Result, Step, StepRun, setting
from components.html.formatting import count
from components.image.buckets import Buckets, aspect_buckets, square_bucket
from components.image.filters import FilterConfig
from components.image.records import read_manifest
from components.image.rejections import SETTING, check_rejected
from components.settings import Settings


def _run(step: StepRun) -> Result:
    from components.clean.cleaning import clean, read_rejections

    config = setting(step.settings, "clean", CleanConfig)
    filters = setting(step.settings, "caption.filters", FilterConfig)
    groups = read_manifest(step.workdir, step.source_id).groups
    where = (step.source_id, groups, step.caption_set, step.workdir)
    result = clean(config, filters, *where, step.progress, _buckets(step.settings))
    # All have captions now, and what comes next is costly: too many rejections by any step so far end the run here.
    share = setting(step.settings, SETTING, object)
    assert share is None or isinstance(share, float)
    check_rejected(result["kept"], result["rejected"], partial(read_rejections, *where), share)
    return result


def _buckets(settings: Settings) -> Buckets:
    """Return the shapes that the latents step will cut images to."""
    side = setting(settings, "latents.resolution", int)
    if setting(settings, "latents.buckets", str) == "square":
        return square_bucket(side)
    return aspect_buckets(
        side, setting(settings, "latents.bucket_step", int), setting(settings, "latents.max_aspect", float)
    )


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    if result["reused"]:
        return f"{count(result['kept'])} kept, nothing has changed"
    return f"{count(result['kept'])} kept, {count(result['rejected_here'])} rejected"


STEP = Step("clean", _run, _summary)
