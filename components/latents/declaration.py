"""How the pipeline runs the latents step: group by group, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.dataset.caption_lengths import read_caption_lengths
from components.dataset.versions import records_of
from components.html.formatting import count, plural
from components.latents.config import LatentsConfig


def _run(step: StepRun) -> Result:
    from components.latents.group import encode

    config = setting(step.settings, "latents", LatentsConfig)
    key, base_model = step.inputs["encoding_key"], step.inputs["base_model"]
    names = (step.group, step.source_id, step.caption_set)
    result = encode(config, *names, key, base_model, step.workdir, step.progress)
    lengths = read_caption_lengths(records_of(step.workdir.child(f"datasets/{key}"), step.caption_set))
    if lengths is None:
        return result
    step.progress.event("caption-lengths", tokens=lengths.tokens)
    return {**result, "cut": lengths.cut.get(step.group, 0)}


def _summary(result: Result, events: Mapping[str, Result]) -> str:
    reused = f", {count(result['reused'])} reused" if result["reused"] else ""
    text = f"{count(result['encoded'])} encoded{reused}, {plural(result['shards'], 'shard')}"
    if not result.get("cut"):
        return text
    cut = f"{plural(result['cut'], 'caption')} cut at {events['caption-lengths']['tokens']} tokens"
    return f"{text}, {cut}"


STEP = Step("latents", _run, _summary, loads_models=True, uses_gpu=lambda _settings: True, per_group=True)
