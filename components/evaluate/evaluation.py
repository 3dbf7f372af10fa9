"""Is the model better? Draw fixed prompts with the newest weights, measure the images, compare with the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

from PIL import Image

from components.digests import digest_tree
from components.errors import DataError
from components.evaluate.config import EvaluateConfig
from components.evaluate.drawing import load_candidate
from components.evaluate.evaluator import ModelEvaluator
from components.evaluate.promotion import PromotionDecision, decide
from components.model import checkpoints
from components.model.champion import Champion, parse_champion, plain_champion, read_champion, weights_sha256
from components.model.checkpoints import Checkpoint
from components.model.locations import fetch, select_device
from components.model.metric_results import EVALUATION, FORMAT, parse_metrics, plain_metrics, read_earlier_evaluation
from components.model.sampling import Model, contact_sheet, load_model
from components.model.text_reading import reading_of_encoding
from components.progress import Progress
from components.storage.base import Storage

FOLDER = "evaluation"


def evaluate(
    config: EvaluateConfig,
    name: str,
    source_id: str,
    encoding_key: str,
    dataset_digest: str,
    base_model: str,
    run: str,
    workdir: Storage,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate a run's newest whole checkpoint; what was measured before is not measured again.

    Args:
        config: What is drawn, how it is measured, and what it takes to be better.
        name: The model whose champion is to be beaten.
        source_id: The source that the real images are read from.
        encoding_key: The folder of the dataset that the run was trained on.
        dataset_digest: The version that it was trained on; a newer one may have other images, and hold out others.
        base_model: The model whose UNet was trained, as `components.model.locations.fetch` takes it.
        run: The run, below ``runs/``; ``evaluation/`` is written there.
        workdir: Where everything lies.
        progress: Receives an event for each image read and each prompt drawn.

    Returns:
        ``better`` and ``reason``, ``metrics`` (each as a `MetricResult`), ``step``, ``weights_sha256``, and
        ``reused``: whether the metrics had been measured before.

    Raises:
        DataError: If there is no such dataset or no whole checkpoint, or the model draws numbers that are not finite.
    """
    folder = workdir.child(f"runs/{run}")
    evaluator = ModelEvaluator(config, source_id, encoding_key, dataset_digest, workdir, progress)
    checkpoint = _newest_whole(folder, progress)
    weights = checkpoint.read_all("ema")
    base = fetch(base_model, workdir)
    reading = reading_of_encoding(evaluator.dataset.encoding)
    identity = {
        "format": FORMAT,
        "weights_sha256": weights_sha256(weights),
        "base_model": base_model,
        "scheduler": digest_tree(base, ["scheduler"]),
        "measurement": evaluator.measurement,
        "sheet_columns": config.sheet_columns,
        **reading.record,
    }
    earlier = read_earlier_evaluation(folder)
    reused = all(earlier.get(key) == value for key, value in identity.items())
    if reused:
        result = earlier
    else:
        place = f"runs/{run}/{checkpoints.folder(checkpoint.step)}"
        model = load_candidate(base, weights, place, select_device(config.device), reading)
        result = {**identity, **_measure(model, evaluator, folder, config.sheet_columns)}

    champion = read_champion(workdir, name)
    if champion is not None and champion.weights_sha256 == identity["weights_sha256"]:
        decision = PromotionDecision(False, f"These weights are already the champion, version {champion.version}.")
    else:
        measured = earlier.get("champion") if earlier.get("format") == FORMAT else None
        champion = _measured_alike(champion, evaluator, measured, config, workdir)
        decision = decide(config.promotion, parse_metrics(result["metrics"]), champion.metrics if champion else None)

    outcome = {**decision._asdict(), "step": checkpoint.step}
    dataset = evaluator.dataset
    # The base's share is null if an earlier version of Darkroom wrote the checkpoint.
    origin = {
        "base_share": checkpoint.counters.get(checkpoints.BASE_SHARE),
        "captions_by": dict(dataset.captions_by),
        "caption_lengths": dict(dataset.caption_lengths),
    }
    versus = {"decided_by": list(config.deciding), "champion": plain_champion(champion) if champion else None}
    folder.write_json(EVALUATION, {**result, **origin, **outcome, **versus})
    return {**outcome, "metrics": result["metrics"], "weights_sha256": identity["weights_sha256"], "reused": reused}


def _newest_whole(run: Storage, progress: Progress) -> Checkpoint:
    """Return the newest checkpoint whose bytes are those that were committed; others are skipped, loudly."""
    for candidate in checkpoints.candidates(run):
        try:
            if isinstance(candidate, DataError):
                raise candidate
            candidate.verify()
        except DataError as error:
            progress.event("checkpoint-skipped", reason=str(error))
        else:
            return candidate
    raise DataError(f"{run.url} has no whole checkpoint to evaluate; run the train step first")


def _measure(model: Model, evaluator: ModelEvaluator, folder: Storage, columns: int) -> dict[str, Any]:
    """Measure the run's model and keep its images, as ``evaluation.json`` has both."""
    folder.delete(EVALUATION)
    folder.delete_tree(FOLDER)

    def keep(number: int, images: Sequence[Image.Image]) -> None:
        buffer = BytesIO()
        contact_sheet(images, columns).save(buffer, "PNG")
        folder.write(_sheet(number), buffer.getvalue())

    measurement = evaluator.measure(model, keep)
    return {
        "dataset_digest": evaluator.dataset.digest,
        "size": list(evaluator.size),
        "metrics": plain_metrics(measurement.metrics),
        "prompts": [{**row, "sheet": _sheet(number)} for number, row in enumerate(measurement.prompts)],
        "real": dict(evaluator.real.counts),
    }


def _sheet(number: int) -> str:
    return f"{FOLDER}/{number:02d}.png"


def _measured_alike(
    champion: Champion | None,
    evaluator: ModelEvaluator,
    measured: Mapping[str, Any] | None,
    config: EvaluateConfig,
    workdir: Storage,
) -> Champion | None:
    """Return the champion with metrics that compare: if it was measured otherwise, it draws again.

    Args:
        champion: As it was published.
        evaluator: Measured the new model.
        measured: The champion as an earlier evaluation of this run has it, perhaps measured again already.
        config: The evaluation's settings.
        workdir: Where the champion lies.
    """
    if champion is None or champion.measurement == evaluator.measurement:
        return champion
    if measured and (measured["version"], measured["measurement"]) == (champion.version, evaluator.measurement):
        return parse_champion(measured)
    model = load_model(fetch(f"workdir:{champion.path}", workdir), select_device(config.device))
    return replace(champion, metrics=evaluator.measure(model).metrics, measurement=evaluator.measurement)
