"""Publish an evaluated model: a diffusers folder under a name made from its content, whole or not there at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from components.digests import digest_file, sha256, short
from components.errors import DamagedFile, DataError, NotFound
from components.model import checkpoints
from components.model.champion import Champion, read_champion, weights_sha256, write_champion
from components.model.locations import check_parts, fetch
from components.model.manifest import COMMIT, check_model, commit_model
from components.model.metric_results import parse_metrics, read_evaluation
from components.model.text_reading import reading_of_record
from components.progress import Progress
from components.publish.card import render_card
from components.publish.config import PublishConfig
from components.storage.base import Storage
from components.storage.scratch import scratch_folder

# Goes up whenever the same weights and the same base would be published as other bytes.
FORMAT = 3
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
# What the champion keeps of its evaluation, besides the metrics.
_EVALUATED = ("step", "measurement", "dataset_digest", "weights_sha256")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def publish(
    config: PublishConfig,
    name: str,
    run: str,
    base_model: str,
    workdir: Storage,
    progress: Progress,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Publish the weights that a run's evaluation measured, and make them the champion.

    Doing it twice changes nothing. When it is killed there is no half model to be seen, and the next attempt writes
    the same bytes.

    Args:
        config: What the model card says.
        name: The model, below ``models/``.
        run: The run, below ``runs/``.
        base_model: The model whose UNet was trained; its other parts are published along with the new one.
        workdir: Where everything lies.
        progress: Receives an event for each file.
        clock: Seconds since 1970, for ``champion.json``.

    Returns:
        ``published``, the folder's key below the workdir, and ``version``.

    Raises:
        DataError: If the run was not evaluated, or its checkpoint is no longer what was evaluated.
        ConfigError: If the base model is no whole Stable Diffusion model.
    """
    folder = workdir.child(f"runs/{run}")
    evaluation = _read_evaluation(folder, base_model)
    metrics = parse_metrics(evaluation["metrics"])
    weights = _evaluated_weights(folder, evaluation)
    base = fetch(base_model, workdir)
    check_parts(base, base_model)
    files = _base_files(base)
    digests = {key: digest_file(path) for key, path in files.items()}
    index = _model_index(base)
    reading = reading_of_record(evaluation)
    made_from = [FORMAT, evaluation["weights_sha256"], digests, sha256(index)]
    version = short([*made_from, reading.record] if reading.record else made_from)
    path = f"models/{name}/{version}"
    target = workdir.child(path)
    if not _is_whole(target, progress):
        card = render_card(name, version, config, evaluation, metrics, _settings(folder))
        texts = {"model_index.json": index, "README.md": card.encode()}
        _write_folder(target, weights, files, texts, reading.record, progress)
    champion = read_champion(workdir, name)
    if champion is None or champion.version != version:
        evaluated = {key: evaluation[key] for key in _EVALUATED}
        new = Champion(version=version, path=path, run=run, published=clock(), metrics=metrics, **evaluated)
        write_champion(workdir, name, new)
    return {"published": path, "version": version}


def _is_whole(target: Storage, progress: Progress) -> bool:
    """Tell whether a version is published already; if it is damaged, it is reported, and will be written again."""
    if not target.exists(COMMIT):
        return False
    folder = target.local_path()
    try:
        if folder is not None:  # a store checks its objects itself, and whoever fetches the model checks its copy
            check_model(target, folder)
    except DamagedFile as error:
        progress.event("model-damaged", reason=str(error))
        target.delete(COMMIT)
        return False
    return True


def _read_evaluation(run: Storage, base_model: str) -> dict[str, Any]:
    evaluation = read_evaluation(run)
    if evaluation["base_model"] != base_model:
        raise DataError(
            f"{run.url} was evaluated with the base model {evaluation['base_model']!r}, not {base_model!r}; "
            "run the evaluate step with the base model that is to be published"
        )
    return evaluation


def _evaluated_weights(run: Storage, evaluation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the weights of the checkpoint that was evaluated, certain that they are the same."""
    checkpoint = checkpoints.open_checkpoint(run, evaluation["step"])
    weights = checkpoint.read_all("ema")
    if weights_sha256(weights) != evaluation["weights_sha256"]:
        raise DataError(
            f"{run.url}: {checkpoints.folder(checkpoint.step)} does not hold the weights that were evaluated; "
            "run the evaluate step again"
        )
    return weights


def _base_files(base: Path) -> dict[str, Path]:
    """Return the base model's files that are published, by key: its settings, vocabulary and safetensors."""
    chosen = [path for part in PARTS for path in sorted((base / part).iterdir()) if _is_published(path)]
    return {path.relative_to(base).as_posix(): path for path in [*chosen, base / "unet/config.json"]}


def _is_published(path: Path) -> bool:
    """Tell whether a file is published: neither pickles are, nor variants such as ``model.fp16.safetensors``."""
    if path.suffix == ".safetensors":
        return "." not in path.stem
    return path.suffix in (".json", ".txt") and path.is_file()


def _model_index(base: Path) -> bytes:
    """Return the base model's index without the parts that are not published, so that diffusers does not miss them."""
    index = json.loads((base / "model_index.json").read_bytes())
    kept = {key: index[key] for key in ("_class_name", "_diffusers_version", "unet", *PARTS) if key in index}
    nothing = {key: [None, None] for key in ("safety_checker", "feature_extractor", "image_encoder")}
    return json.dumps({**kept, **nothing, "requires_safety_checker": False}, indent=2, sort_keys=True).encode() + b"\n"


def _settings(run: Storage) -> Mapping[str, Any] | None:
    try:
        settings: dict[str, Any] = run.read_json("config.json", must_have_checksum=True)
    except NotFound:
        return None
    return settings


def _write_folder(
    target: Storage,
    weights: Mapping[str, NDArray[Any]],
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
    more: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Write all parts, then the manifest with their digests and ``more``, then the marker that makes them a model."""
    from safetensors.numpy import save_file

    with scratch_folder("publish") as folder:
        # diffusers reads only files whose metadata says that they come from torch.
        unet = folder / Path(WEIGHTS).name
        save_file(dict(weights), unet, metadata={"format": "pt"})
        paths = {**files, WEIGHTS: unet}
        for key in progress.track(sorted(paths), "files published", len(paths)):
            target.upload(key, paths[key])
        digests = {key: digest_file(path) for key, path in paths.items()}
    for key, text in texts.items():
        target.write(key, text)
        digests[key] = sha256(text)
    commit_model(target, digests, FORMAT, more)
