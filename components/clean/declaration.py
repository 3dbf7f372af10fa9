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
from components.storage.base import Storage

_TOKENS = 75  # of a caption that Stable Diffusion's text encoders read at once


def _run(step: StepRun) -> Result:
    from components.clean.cleaning import clean, read_rejections

    config = setting(step.settings, "clean", CleanConfig)
    filters = setting(step.settings, "caption.filters", FilterConfig)
    groups = read_manifest(step.workdir, step.source_id).groups
    where = (step.source_id, groups, step.caption_set, step.workdir)
    shapes, tokens = _buckets(step.settings), _tokens(step.settings, step.workdir)
    result = clean(config, filters, *where, step.progress, shapes, tokens)
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


def _tokens(settings: Settings, workdir: Storage) -> int:
    """Return how many tokens of a caption the text encoder will read, its own beginnings and ends not counted.

    A base model is taken for one of Stable Diffusion's: this step has no model at hand.
    """
    from components.model.text_reading import chunks_of_base

    chunks = setting(settings, "latents.text_chunks", object)
    assert chunks is None or isinstance(chunks, int)
    base = setting(settings, "model.base", object)
    if base is None:
        return (chunks or 1) * (setting(settings, "model.scratch.architecture.text.max_tokens", int) - 2)
    return chunks_of_base(chunks, str(base), workdir) * _TOKENS


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    if result["reused"]:
        return f"{count(result['kept'])} kept, nothing has changed"
    return f"{count(result['kept'])} kept, {count(result['rejected_here'])} rejected"


STEP = Step("clean", _run, _summary)
