"""The parts of a diffusers model that Darkroom trains, and what keeps a model from being trained, all of it at once.

Only small files are read, wherever they are, so that a wrong model is named before anything is downloaded or encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import NotFound

_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
# Each part of a model that Darkroom can train, and the class that model_index.json must name for it; None: any.
PARTS = {
    "vae": "AutoencoderKL",
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "tokenizer": None,
    "scheduler": None,
}
SECOND_TEXT = ("text_encoder_2", "tokenizer_2")  # of SDXL
_WITH_WEIGHTS = ("vae", "unet", "text_encoder")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class ModelFiles(NamedTuple):
    """The files of a model, wherever they are.

    Attributes:
        names: Their names, relative to the model.
        read: Returns the bytes of a small one.
    """

    names: frozenset[str]
    read: Callable[[str], bytes]


def files_of_folder(folder: Path) -> ModelFiles:
    """Return the files of a folder on this machine."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return ModelFiles(frozenset(names), lambda name: (folder / name).read_bytes())


def part_problems(files: ModelFiles, uri: str) -> Iterator[str]:
    """Yield why a model cannot be the base of a training; nothing if it can.

    Args:
        files: Its files.
        uri: Its location, as the settings name it.
    """
    try:
        index = _read(files, "model_index.json")
    except (OSError, ValueError, NotFound) as error:
        yield f"model {uri!r}: no readable model_index.json ({error}); is it a diffusers folder?"
        return
    if "text_encoder_2" in index:
        yield f"model {uri!r} has two text encoders (SDXL); expected one, as in Stable Diffusion 1 and 2"
    folders = {name.partition("/")[0] for name in files.names if "/" in name}
    whole = set()
    for part, expected in PARTS.items():
        actual = _class(index.get(part))
        if actual is None or part not in folders:
            yield f"model {uri!r} has no {part}; expected a whole diffusers folder with {', '.join(PARTS)}"
        elif expected is not None and actual != expected:
            yield f"model {uri!r}: its {part} is {actual}, expected {expected}"
        else:
            whole.add(part)
    for part in _WITH_WEIGHTS:
        if part in whole and not any(_WEIGHTS.fullmatch(name.removeprefix(f"{part}/")) for name in files.names):
            yield f"model {uri!r}: no safetensors in {part}/; pickled weights and variants are not loaded, convert them"
    if whole == set(PARTS):
        yield from _disagreements(files, uri)


def _disagreements(files: ModelFiles, uri: str) -> Iterator[str]:
    """Yield where the parts do not fit each other, by their configs."""
    try:
        unet, vae = _read(files, "unet/config.json"), _read(files, "vae/config.json")
        text, scheduler = _read(files, "text_encoder/config.json"), _read(files, "scheduler/scheduler_config.json")
    except (OSError, ValueError, NotFound) as error:
        yield f"model {uri!r}: a config cannot be read ({error}); download the model again"
        return
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        kind = {9: " (an inpainting model)", 8: " (a model that edits or upscales images)"}.get(channels, "")
        yield (
            f"model {uri!r}: its UNet takes {channels} channels{kind}, but the autoencoder's latents have {latent}; "
            "expected a model that draws from text alone"
        )
    width, hidden = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if width != hidden:
        yield f"model {uri!r}: its UNet reads text of width {width}, but its text encoder writes {hidden}"
    if unet.get("addition_embed_type") is not None:
        yield f"model {uri!r}: its UNet needs {unet['addition_embed_type']} beside the text; expected none"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        yield f"model {uri!r}: it predicts {prediction!r}, expected one of {', '.join(_PREDICTIONS)}"


def _read(files: ModelFiles, name: str) -> Mapping[str, Any]:
    values = json.loads(files.read(name))
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds {type(values).__name__}, expected an object")
    return values


def _class(entry: Any) -> str | None:
    """Return the class that model_index.json names for a part; None if it names none."""
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None
