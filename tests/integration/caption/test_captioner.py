"""The captioner loads a real BLIP, made here and taught two colours, and captions what has no usable caption file."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.caption.models.captioner import Captioner
from components.digests import digest_tree
from components.errors import ConfigError, StorageError
from components.image.decoding import ImageLimits
from components.image.records import CaptionRecord, read_caption_rejections, read_captions
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.models import commit_all
from tests.stores.memory import MemoryStorage

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "blue", "square", "photo", "of"]
COLOURS = ("red", "blue")


def untrained() -> BlipForConditionalGeneration:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "encoder_hidden_size": 32, **size}
    special = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 16, "patch_size": 8, **size}
    config = BlipConfig(text_config={**text, **special}, vision_config=vision, projection_dim=16)
    config.image_text_hidden_size = 32
    return BlipForConditionalGeneration(config)


def teach(model: BlipForConditionalGeneration, processor: BlipProcessor) -> None:
    """Teach the model "a red square" and, where it is prompted so, "photo of a red square"; the same for blue."""
    captions = [f"{prompt}a {colour} square" for colour in COLOURS for prompt in ("", "", "photo of ")]
    images = [Image.new("RGB", (16, 16), colour) for colour in COLOURS for _ in range(3)]
    inputs = processor(images=images, text=captions, padding=True, return_tensors="pt")
    inputs["input_ids"][:, 0] = 5
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(40):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, bos_token="[DEC]")
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    model = untrained()
    teach(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def square(colour: str, side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, 20), colour).save(file, "PNG")
    return file.getvalue()


def photos(root: Path) -> Path:
    """Two images without a caption file, one with a good one, one with a bad one, one that is cut off."""
    root.mkdir()
    for name, data in {
        "alone-red.png": square("red"),
        "alone-blue.png": square("blue"),
        "written.png": square("red", 30),
        "written.txt": b"my own words",
        "latin.png": square("blue", 40),
        "latin.txt": b"caf\xe9",
        "cut.png": square("red", 50)[:-30],
    }.items():
        (root / name).write_bytes(data)
    return root


def run(root: Path, work: Storage, **settings: Any) -> dict[str, Any]:
    progress = Progress(io.StringIO())
    source_id = ingest(IngestConfig(source=str(root)), work, progress)["source_id"]
    # Squares of one colour are what the captioner knows, and what the filters leave out.
    config = CaptionConfig.parse({"device": "cpu", "filters": {"min_spread": None}, **settings})
    return caption(config, ImageLimits(), "g", source_id, "src/key", work, progress)


def load_captioner(model: str, work: Storage) -> Captioner:
    return Captioner(CaptionConfig(model=(model,), device="cpu"), work, Progress(io.StringIO()))


def records(work: Storage) -> dict[str, CaptionRecord]:
    return {record.name: record for record in read_captions(work.child("captions/src/key"), "g")}


def test_the_model_captions_what_has_no_usable_caption_file(blip: Path, tmp_path: Path) -> None:
    work = MemoryStorage("captioner-fills")
    result = run(photos(tmp_path / "photos"), work, model=str(blip), batch_size=2)
    assert (result["captioned"], result["rejected"]) == (4, 1)
    captioned = records(work)
    assert {name: record.captions[0].text for name, record in captioned.items()} == {
        "alone-red.png": "a red square",
        "alone-blue.png": "a blue square",
        "latin.png": "a blue square",
        "written.png": "my own words",
    }
    assert captioned["written.png"].captions[0].by == "sidecar:written.txt"
    author = f"model:{blip}@{digest_tree(blip, ['.'])[:12]}"
    assert {captioned[name].captions[0].by for name in ("alone-red.png", "latin.png")} == {author}
    assert "caption" not in captioned["alone-red.png"].verdicts
    assert "caption-not-utf8" in captioned["latin.png"].verdicts["caption"]
    (rejection,) = read_caption_rejections(work.child("captions/src/key"), "g")
    assert (rejection.name, rejection.reason) == ("cut.png", "truncated")


def test_the_size_of_a_batch_does_not_change_the_words(blip: Path, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    written = []
    for size in (1, 8):
        work = MemoryStorage(f"captioner-batch-{size}")
        run(root, work, model=str(blip), batch_size=size)
        written.append(work.read("captions/src/key/g.jsonl"))
    assert written[0] == written[1]


def test_the_model_continues_the_prompt(blip: Path, tmp_path: Path) -> None:
    work = MemoryStorage("captioner-prompt")
    run(photos(tmp_path / "photos"), work, model=str(blip), prompt="photo of")
    assert records(work)["alone-blue.png"].captions[0].text == "photo of a blue square"


def test_another_model_at_the_same_place_captions_again(blip: Path, tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("captioner-changed")
    folder = shutil.copytree(blip, tmp_path / "model")
    run(root, work, model=str(folder))
    assert run(root, work, model=str(folder)) == {"group": "g", "captioned": 0, "reused": 4, "rejected": 1}
    untrained().save_pretrained(folder)
    again = run(root, work, model=str(folder))
    assert again["reused"] == 1  # written.png: no model was asked for it
    assert again["captioned"] + again["rejected"] == 4


def test_a_model_that_the_workdir_holds_is_found(blip: Path, tmp_path: Path) -> None:
    work = MemoryStorage("captioner-workdir")
    for path in blip.iterdir():
        work.write(f"models/captioner/{path.name}", path.read_bytes())
    commit_all(work.child("models/captioner"))
    run(photos(tmp_path / "photos"), work, model="workdir:models/captioner")
    assert records(work)["alone-red.png"].captions[0].text == "a red square"


def test_code_that_comes_with_a_model_is_never_run(blip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(blip, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_captioner(str(folder), MemoryStorage("captioner-evil"))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_loaded(blip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(blip, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(untrained().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_captioner(str(folder), MemoryStorage("captioner-pickle"))


def test_a_model_of_another_kind_is_a_wrong_setting(blip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(blip, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(ConfigError, match="image-to-text"):
        load_captioner(str(folder), MemoryStorage("captioner-other"))


def test_a_hub_that_cannot_be_reached_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=r"(?s)Salesforce/blip.*the way to the hub"):
        load_captioner("blip", MemoryStorage("captioner-hub"))
