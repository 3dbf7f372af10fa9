"""Loads a captioner from wherever it is: safetensors only, and its own code only where the settings name it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils.hub import cached_file, resolve_revision
from transformers.utils.import_utils import is_torchvision_available

from components.caption.config import CaptionConfig
from components.caption.models.identity import identity
from components.caption.models.protocols import Protocol, protocol_for
from components.errors import ConfigError, StorageError
from components.model.locations import fetch, is_hub_name, torch_dtype
from components.storage.base import Storage

# Under which of these names a repository's own code may offer its model, the best first.
_AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")
# Files of a repository that can name code.
_NAMING_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Loaded:
    """A captioner, ready.

    Attributes:
        name: Its name in the settings.
        version: Its revision or, where it is a folder, the beginning of its digest.
        model: The transformers model.
        protocol: How it is asked.
        device: Where it is.
        dtype: Its numbers.
    """

    name: str
    version: str
    model: Any
    protocol: Protocol
    device: torch.device
    dtype: torch.dtype


def load(name: str, config: CaptionConfig, workdir: Storage, device: torch.device) -> Loaded:
    """Load a captioner.

    Args:
        name: Its name, as ``components.model.locations`` understands it.
        config: What it is asked, and in which numbers it computes.
        workdir: Where ``workdir:`` names lead.
        device: Where it is to run.

    Raises:
        ConfigError: Where there is no such model, or it cannot be loaded from what is there.
        StorageError: Where it cannot be downloaded; a retry may help.
    """
    transformers.utils.logging.disable_progress_bar()  # Darkroom's own could not be read among them
    dtype = _dtype(config.dtype, device)
    hub = is_hub_name(name)
    # The library picks the files that it needs out of a hub repository; other places are fetched whole.
    place, _, revision = name.partition("@") if hub else (str(fetch(name, workdir)), "", "")
    trusted = hub and name == config.trust_remote_code
    try:
        pinned = resolve_revision(place, revision or None)
        options = {"revision": pinned, "trust_remote_code": trusted}
        if trusted:
            _check_code(place, pinned)
        settings = AutoConfig.from_pretrained(place, **options)
        processor = load_processor(place, settings.model_type, options)
        model = _auto_class(settings, trusted).from_pretrained(place, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise _refusal(name, error, hub) from None
    version = str(getattr(pinned, "resolved", pinned) or "main") if hub else identity(name, workdir)[:12]
    protocol = protocol_for(settings.model_type, processor, config.prompt)
    return Loaded(name, version, model.to(device).eval(), protocol, device, dtype)


def load_processor(place: str, kind: str, options: dict[str, Any]) -> Any:
    """Return a model's processor.

    Those that take videos as well want torchvision for them, which pictures do not need: where it is missing, the
    processor comes without the part for videos.

    Args:
        place: Folder or repository.
        kind: The ``model_type`` of the model's config.
        options: What ``from_pretrained`` is told besides.
    """
    made = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(kind) or "", None)
    if made is None or is_torchvision_available() or "video_processor" not in made.get_attributes():
        return AutoProcessor.from_pretrained(place, **options)
    still_processor = without_videos(made)
    return still_processor.from_pretrained(place, video_processor=None, **options)


def without_videos(processor: Any) -> Any:
    """Return a processor's class without the part that takes videos."""
    parts = [part for part in processor.get_attributes() if part != "video_processor"]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda _cls: parts)})


def _auto_class(settings: Any, trusted: bool) -> Any:
    """Return the auto class that loads a model: that of the library, or the one that the trusted code is made for."""
    offered = getattr(settings, "auto_map", None) or {}
    names = [name for name in _AUTO_CLASSES if trusted and name in offered] or _AUTO_CLASSES[:1]
    return getattr(transformers, names[0])


def _check_code(repository: str, revision: str | None) -> None:
    """Check that a repository's files name no code of another repository, which nobody has trusted.

    Raises:
        ConfigError: Where they do.
    """
    for file in _NAMING_CODE:
        found = cached_file(repository, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        for name in _texts(json.loads(Path(found).read_text("utf-8")).get("auto_map")):
            other, separator, _ = name.partition("--")
            if separator and other != repository:
                raise ConfigError(
                    f"captioner {repository!r}: {file} names code of {other!r}; caption.trust_remote_code trusts "
                    f"{repository!r} alone"
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return torch_dtype(name)
    if device.type != "cuda":
        return torch.float32
    # GPUs before Ampere compute in bf16 only by detours.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _refusal(name: str, error: Exception, hub: bool) -> Exception:
    if isinstance(error, ConfigError):
        return error
    said = f"captioner {name!r} cannot be loaded: {str(error).strip() or type(error).__name__}"
    if hub and isinstance(error, OSError):
        return StorageError(
            f"{said}; check the name and the way to the hub, or leave images without a caption out (caption.model=null)"
        )
    return ConfigError(f"{said}; expected an image-to-text model of transformers with safetensors")
