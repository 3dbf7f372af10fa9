"""How the pipeline runs the latents step: group by group, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.latents.config import LatentsConfig


def _run(step: StepRun) -> Result:
    from components.latents.group import encode

    config = setting(step.settings, "latents", LatentsConfig)
    key, base_model = step.inputs["encoding_key"], step.inputs["base_model"]
    names = (step.group, step.source_id, step.caption_set)
    return encode(config, *names, key, base_model, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    reused = f", {count(result['reused'])} reused" if result["reused"] else ""
    return f"{count(result['encoded'])} encoded{reused}, {plural(result['shards'], 'shard')}"


STEP = Step("latents", _run, _summary, loads_models=True, uses_gpu=lambda _settings: True, per_group=True)
