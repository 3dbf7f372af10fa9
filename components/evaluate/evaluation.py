"""Is the model better? Draw fixed prompts with the newest weights, measure the pictures, compare with the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

from PIL import Image

from components.digests import digest_tree
from components.errors import DataError
from components.evaluate.bench import Bench
from components.evaluate.config import EvaluateConfig
from components.evaluate.drawing import load_candidate
from components.evaluate.promotion import Verdict, compare
from components.image.authors import read_authors
from components.model import checkpoints
from components.model.champion import Champion, read_champion, weights_sha256
from components.model.checkpoints import Checkpoint
from components.model.locations import fetch, select_device
from components.model.sampling import Model, contact_sheet, load_model
from components.progress import Progress
from components.storage.base import Storage

FOLDER = "evaluation"
RESULT = f"{FOLDER}/evaluation.json"


def evaluate(
    config: EvaluateConfig,
    name: str,
    source_id: str,
    encoding_key: str,
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
        encoding_key: The dataset that the run was trained on.
        base_model: The model whose UNet was trained, as `components.model.locations.fetch` takes it.
        run: The run, below ``runs/``; ``evaluation/`` is written there.
        workdir: Where everything lies.
        progress: Told of each image read and each prompt drawn.

    Returns:
        ``better`` and ``reason``, the metrics (None where one could not be measured), ``step``, ``weights_sha256``,
        and ``reused``: whether the metrics had been measured before.

    Raises:
        DataError: Where there is no dataset or no whole checkpoint, or the model draws nothing finite.
    """
    place = workdir.child(f"runs/{run}")
    bench = Bench(config, source_id, encoding_key, workdir, progress)
    checkpoint = _newest_whole(place, progress)
    weights = checkpoint.read_all("ema")
    base = fetch(base_model, workdir)
    identity = {
        "weights_sha256": weights_sha256(weights),
        "base_model": base_model,
        "scheduler": digest_tree(base, ["scheduler"]),
        "measurement": bench.measurement,
        "sheet_columns": config.sheet_columns,
    }
    earlier = place.read_json(RESULT) if place.exists(RESULT) else {}
    reused = all(earlier.get(key) == value for key, value in identity.items())
    if reused:
        result = earlier
    else:
        where = f"runs/{run}/{checkpoints.folder(checkpoint.step)}"
        model = load_candidate(base, weights, where, select_device(config.device))
        result = {**identity, **_measure(model, bench, place, config.sheet_columns)}

    champion = read_champion(workdir, name)
    if champion is not None and champion.weights_sha256 == identity["weights_sha256"]:
        verdict = Verdict(False, f"These weights are already the champion, version {champion.version}.")
    else:
        champion = _measured_alike(champion, bench, earlier.get("champion"), config, workdir)
        verdict = compare(config, result["metrics"], champion.metrics if champion else None)

    told = {**verdict._asdict(), "step": checkpoint.step}
    kept = {"captions_by": read_authors(workdir.child(f"datasets/{encoding_key}"))}
    place.write_json(RESULT, {**result, **kept, **told, "champion": asdict(champion) if champion else None})
    return {**told, **result["metrics"], "weights_sha256": identity["weights_sha256"], "reused": reused}


def _newest_whole(run: Storage, progress: Progress) -> Checkpoint:
    """Return the newest checkpoint whose bytes are those that were committed; others are skipped, loudly."""
    for found in checkpoints.candidates(run):
        try:
            if isinstance(found, DataError):
                raise found
            found.verify()
        except DataError as error:
            progress.event("checkpoint-skipped", reason=str(error))
        else:
            return found
    raise DataError(f"{run.url} has no whole checkpoint to evaluate; run the train step first")


def _measure(model: Model, bench: Bench, place: Storage, columns: int) -> dict[str, Any]:
    """Measure the run's model and keep its pictures, as ``evaluation.json`` has both."""
    place.delete(RESULT)
    place.delete_tree(FOLDER)

    def keep(number: int, images: Sequence[Image.Image]) -> None:
        buffer = BytesIO()
        contact_sheet(images, columns).save(buffer, "PNG")
        place.write(_sheet(number), buffer.getvalue())

    found = bench.measure(model, keep)
    real = bench.real
    return {
        "dataset_digest": bench.dataset.digest,
        "size": list(bench.size),
        "metrics": found.metrics,
        "unknown": found.unknown,
        "prompts": [{**row, "sheet": _sheet(number)} for number, row in enumerate(found.prompts)],
        "real": {"train": len(real.train.captions), "held_out": len(real.held_out.captions), "skipped": real.skipped},
    }


def _sheet(number: int) -> str:
    return f"{FOLDER}/{number:02d}.png"


def _measured_alike(
    champion: Champion | None,
    bench: Bench,
    known: Mapping[str, Any] | None,
    config: EvaluateConfig,
    workdir: Storage,
) -> Champion | None:
    """Return the champion with metrics that compare: where other pictures or images gave them, it draws again.

    Args:
        champion: As it was published.
        bench: What the new model was measured on.
        known: The champion as an earlier evaluation of this run has it, perhaps measured again already.
        config: The evaluation's settings.
        workdir: Where the champion lies.
    """
    if champion is None or champion.measurement == bench.measurement:
        return champion
    if known and (known["version"], known["measurement"]) == (champion.version, bench.measurement):
        return Champion(**known)
    model = load_model(fetch(f"workdir:{champion.path}", workdir), select_device(config.device))
    return replace(champion, metrics=bench.measure(model).metrics, measurement=bench.measurement)
