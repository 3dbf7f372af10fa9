"""How the pipeline runs the index step: once for all groups; it commits the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.image.records import read_manifest, read_rejections
from components.image.rejections import SETTING, check_rejected
from components.index.config import IndexConfig


def _run(step: StepRun) -> Result:
    from components.dataset.versions import records_of
    from components.index.build import index
    from components.index.files import REJECTED

    config = setting(step.settings, "index", IndexConfig)
    groups = read_manifest(step.workdir, step.source_id).groups
    names = (step.source_id, groups, step.caption_set, step.inputs["encoding_key"])
    variants = setting(step.settings, "latents.variants.count", int)
    result = index(config, *names, step.workdir, step.progress, variants)
    # The clean step has checked this, too; the latents step may have rejected more since.
    share = setting(step.settings, SETTING, object)
    assert share is None or isinstance(share, float)
    records = records_of(step.workdir.child(f"datasets/{step.inputs['encoding_key']}"), step.caption_set)
    check_rejected(result["images"], result["rejected"], partial(read_rejections, records, REJECTED), share)
    return result


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    return f"{plural(result['images'], 'image')}, {count(result['held_out'])} of them held out"


STEP = Step("index", _run, _summary)
