"""How the pipeline runs the autoencoder step: it provides the base model, and makes one if none is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.autoencoder.config import ModelConfig
from components.command import Problem, Result, Step, StepRun, setting
from components.html.formatting import plural
from components.image.records import read_manifest
from components.settings import Settings


def _run(step: StepRun) -> Result:
    from components.autoencoder.base_model import TrainingData, ensure_base
    from components.autoencoder.caption_check import check_captions
    from components.model.base_record import record_base
    from components.model.locations import fetch
    from components.model.text_reading import reading_of_model, text_chunks

    config, chunks = setting(step.settings, "model", ModelConfig), setting(step.settings, "latents.text_chunks", object)
    assert chunks is None or isinstance(chunks, int)
    seed, held_out = setting(step.settings, "seed", int), setting(step.settings, "index.held_out", float)
    texts, equal = setting(step.settings, "caption.texts", dict), setting(step.settings, "latents.equal_captions", str)
    data = TrainingData(step.source_id, step.caption_set, texts, held_out, equal == "error", chunks or 1)
    base = ensure_base(config, seed, data, step.workdir, step.progress)
    folder = fetch(base["base_model"], step.workdir)
    record_base(step.workdir.child(f"runs/{step.run}"), base["base_model"], folder)
    key = step.encoding_key(folder)
    groups = read_manifest(step.workdir, step.source_id).groups
    captions = (groups, step.caption_set, key, step.workdir)
    read = text_chunks(chunks, folder)
    lengths = check_captions(folder, *captions, reject_equal=data.reject_equal, chunks=read)
    trained = reading_of_model(folder).chunks
    other = {"text_chunks": read, "text_chunks_of_base": trained} if read < trained else {}
    return {**base, "encoding_key": key, "caption_lengths": lengths.total, **other}


def _summary(result: Result, events: Mapping[str, Result]) -> str:
    if "text_chunks_of_base" in result:
        trained, now = result["text_chunks_of_base"], result["text_chunks"]
        return f"it was trained with latents.text_chunks {trained}, and now with {now}"
    if not result["trained"]:
        return "there already"
    training = events.get("autoencoder")
    return f"trained on {plural(training['images'], 'image')}, loss {training['loss']:.3f}" if training else "trained"


def _check(step: StepRun) -> Iterator[Problem]:
    from components.autoencoder.checks import base_problems

    return base_problems(setting(step.settings, "model", ModelConfig), step.workdir)


def _uses_gpu(settings: Settings) -> bool:
    return setting(settings, "model", ModelConfig).base is None


STEP = Step("autoencoder", _run, _summary, loads_models=True, uses_gpu=_uses_gpu, check=_check)
