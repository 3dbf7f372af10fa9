"""A transformers model that writes captions: BLIP, or another image-to-text model of the library itself.

Only safetensors are loaded, and never code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from components.caption.config import CaptionConfig
from components.errors import ConfigError, StorageError
from components.models import fetch, is_hub_name, select_device
from components.storage import Storage


class Captioner:
    """A captioning model, loaded and ready.

    Args:
        model: Its name, as ``components.models`` understands it.
        config: What it is asked, and where it runs.
        workdir: Where ``workdir:`` names lead.

    Raises:
        ConfigError: Where there is no such model, or it cannot be loaded from the folder given.
        StorageError: Where it cannot be downloaded.
    """

    def __init__(self, model: str, config: CaptionConfig, workdir: Storage) -> None:
        self._config = config
        self._device = select_device(config.device)
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        hub = is_hub_name(model)
        # The library picks the files that it needs out of a hub repository; other places are fetched whole.
        place, _, revision = model.partition("@") if hub else (str(fetch(model, workdir)), "", "")
        options = {"revision": revision or None, "trust_remote_code": False}
        try:
            self._processor = AutoProcessor.from_pretrained(place, **options)
            loaded = AutoModelForImageTextToText.from_pretrained(
                place, dtype=self._dtype, use_safetensors=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = f"captioner {model!r} cannot be loaded: {str(error).strip() or type(error).__name__}"
            if hub and isinstance(error, OSError):
                raise StorageError(f"{said}; check the name and the way to the hub") from None
            raise ConfigError(f"{said}; expected an image-to-text model of transformers with safetensors") from None
        self._model = loaded.to(self._device).eval()

    def write(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return one caption per picture, by greedy decoding: the same picture gets the same words."""
        prompts = {"text": [self._config.prompt] * len(pictures)} if self._config.prompt else {}
        inputs = self._processor(images=list(pictures), **prompts, return_tensors="pt").to(self._device, self._dtype)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs, max_new_tokens=self._config.max_new_tokens, do_sample=False, num_beams=1
            )  # [B, T]
        return [str(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]
