"""Loads a captioner from a folder, storage or the hub: only safetensors, its own code only if the settings say so."""

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

# The names under which a repository's own code may offer its model, the best first.
_AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")
# Files of a repository that can name code.
_NAMING_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class LoadedModel:
    """A captioner, ready.

    Attributes:
        name: Its name in the settings.
        version: Its revision or, of a folder, the beginning of its digest.
        model: The transformers model.
        protocol: How it is prompted and read.
        device: The device it is on.
        dtype: The type of its numbers.
    """

    name: str
    version: str
    model: Any
    protocol: Protocol
    device: torch.device
    dtype: torch.dtype


def load(name: str, config: CaptionConfig, workdir: Storage, device: torch.device) -> LoadedModel:
    """Load a captioner.

    Args:
        name: Its name, as ``components.model.locations`` understands it.
        config: Its prompt and its dtype.
        workdir: The storage of ``workdir:`` models.
        device: The device it is to run on.

    Raises:
        ConfigError: If the model does not exist or cannot be loaded.
        StorageError: If it cannot be downloaded; a retry may help.
    """
    transformers.utils.logging.disable_progress_bar()  # Darkroom's own would be lost among them
    dtype = _dtype(config.dtype, device)
    hub = is_hub_name(name)
    # The library downloads the files that it needs from the hub; models elsewhere are fetched whole.
    path, _, revision = name.partition("@") if hub else (str(fetch(name, workdir)), "", "")
    trusted = hub and name == config.trust_remote_code
    try:
        pinned = resolve_revision(path, revision or None)
        options = {"revision": pinned, "trust_remote_code": trusted}
        if trusted:
            _check_code(path, pinned)
        settings = AutoConfig.from_pretrained(path, **options)
        processor = load_processor(path, settings.model_type, options)
        model = _auto_class(settings, trusted).from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise _error(name, error, hub) from None
    version = str(getattr(pinned, "resolved", pinned) or "main") if hub else identity(name, workdir)[:12]
    protocol = protocol_for(settings.model_type, processor, config.prompt)
    return LoadedModel(name, version, model.to(device).eval(), protocol, device, dtype)


def load_processor(path: str, kind: str, options: dict[str, Any]) -> Any:
    """Return a model's processor.

    Processors that also take videos need torchvision for them, which images do not need: if it is missing, the
    processor comes without its part for videos.

    Args:
        path: Folder or repository.
        kind: The ``model_type`` of the model's config.
        options: Further arguments of ``from_pretrained``.
    """
    processor = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(kind) or "", None)
    if processor is None or is_torchvision_available() or "video_processor" not in processor.get_attributes():
        return AutoProcessor.from_pretrained(path, **options)
    image_processor = without_videos(processor)
    return image_processor.from_pretrained(path, video_processor=None, **options)


def without_videos(processor: Any) -> Any:
    """Return a processor's class without the part that takes videos."""
    parts = [part for part in processor.get_attributes() if part != "video_processor"]
    return type(processor.__name__, (processor,), {"get_attributes": classmethod(lambda _cls: parts)})


def _auto_class(settings: Any, trusted: bool) -> Any:
    """Return the auto class that loads a model: the library's, or the one that the trusted code is made for."""
    auto_map = getattr(settings, "auto_map", None) or {}
    names = [name for name in _AUTO_CLASSES if trusted and name in auto_map] or _AUTO_CLASSES[:1]
    return getattr(transformers, names[0])


def _check_code(repository: str, revision: str | None) -> None:
    """Check that a repository's files name no code of another repository, which the settings do not trust.

    Raises:
        ConfigError: If they name some.
    """
    for file in _NAMING_CODE:
        path = cached_file(repository, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        for name in _texts(json.loads(Path(path).read_text("utf-8")).get("auto_map")):
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
    # GPUs before Ampere only emulate bf16.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _error(name: str, error: Exception, hub: bool) -> Exception:
    if isinstance(error, ConfigError):
        return error
    message = f"captioner {name!r} cannot be loaded: {str(error).strip() or type(error).__name__}"
    if hub and isinstance(error, OSError):
        return StorageError(
            f"{message}; check the name and the way to the hub, or caption without a model (caption.model=null)"
        )
    return ConfigError(f"{message}; expected an image-to-text model of transformers with safetensors")
