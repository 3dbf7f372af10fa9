"""Captioners of three kinds, made here and taught two colours, are asked as their kind wants, and survive trouble."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from components.caption import group
from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.caption.models.loading import without_videos
from components.caption.models.protocols import QUESTION
from components.caption.resume import save_unfinished
from components.errors import ConfigError, DarkroomError, OutOfMemory, StorageError
from components.image.decoding import ImageLimits
from components.image.records import Caption, read_caption_rejections, read_captions
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage

KINDS = ("qwen", "smolvlm", "florence")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %}{{ c.text }}{% endif %}{% endfor %} </s>{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


def tokenizer(*special: str, **named: Any) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<pad>", "<s>", "</s>", *special, "a", "red", "blue", "square", "assistant", "user", ":", "this"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{"extra_special_tokens": list(special), **ends, **named})


def qwen() -> tuple[Any, Any]:
    special = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    special |= {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    words = tokenizer(*special.values())
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": len(words), "num_key_value_heads": 1, "rope_parameters": rope, **SIZES, **TOKENS},
        vision_config={**vision, "fullatt_block_indexes": [0], "window_size": 56},
        **{f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in special.items()},
    )
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_videos(Qwen2_5_VLProcessor)(images, words, None, chat_template=template)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>")
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, **SIZES, **TOKENS
        },
        vision_config={"image_size": 32, "patch_size": 8, **SIZES},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=1,
    )  # fmt: skip
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = without_videos(SmolVLMProcessor)(images, words, None, image_seq_len=4, chat_template=template)
    return SmolVLMForConditionalGeneration(config), processor


def florence() -> tuple[Any, Any]:
    words = tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    bart = {
        "model_type": "bart",
        "vocab_size": len(words),
        "d_model": 32,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    }
    bart |= {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    vision = {"depths": (1,) * 4, "embed_dim": (8, 16, 16, 32), "num_heads": (1,) * 4, "num_groups": (1,) * 4}
    config = Florence2Config(
        text_config={**bart, **TOKENS, "decoder_start_token_id": 2},
        vision_config={**vision, "projection_dim": 32, "window_size": 2},
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = Florence2Processor(images, words, post_processor_config={"pure_text": {}})
    return Florence2ForConditionalGeneration(config), processor


def teach(kind: str, model: Any, processor: Any) -> None:
    """Teach a model to say "a red square" of a red image, asked as its kind is, and the same for blue."""
    colours = ["red", "blue"]
    images = [Image.new("RGB", (28, 28), colour) for colour in colours]
    answers = [f" a {colour} square </s>" for colour in colours]
    if kind == "florence":
        inputs = processor(images=images, text=["<MORE_DETAILED_CAPTION>"] * 2, return_tensors="pt")
        inputs["labels"] = torch.tensor(processor.tokenizer(answers, add_special_tokens=False)["input_ids"])
    else:
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        question = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=processor.chat_template,
            add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        texts = [question + answer for answer in answers]
        inputs = processor(text=texts, images=[[image] for image in images], padding=True, return_tensors="pt")
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, :-4] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(80):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    makers: dict[str, Callable[[], tuple[Any, Any]]] = {"qwen": qwen, "smolvlm": smolvlm, "florence": florence}
    for kind, make in makers.items():
        torch.manual_seed(0)
        model, processor = make()
        teach(kind, model, processor)
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
        processor.save_pretrained(folders[kind])
    return folders


# One of these captioners crashes on a very long image, which the limits would otherwise leave out before.
LONG = ImageLimits(max_aspect=None)


def photos(root: Path, count: int = 4) -> Path:
    root.mkdir()
    for number in range(count):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (24 + number, 28), colour).save(root / f"{number}-{colour}.png")
    return root


def run(root: Path, work: Storage, stream: io.StringIO | None = None, **settings: Any) -> dict[str, Any]:
    progress = Progress(stream or io.StringIO())
    source_id = ingest(IngestConfig(source=str(root), limits=LONG), work, progress)["source_id"]
    # Squares of one colour are what these captioners know, and what the filters leave out.
    plain = {"device": "cpu", "max_new_tokens": 8, "filters": {"min_spread": None}}
    config = CaptionConfig.parse({**plain, **settings})
    return caption(config, LONG, "g", source_id, "src/key", work, progress)


def texts(work: Storage) -> dict[str, str]:
    return {record.name: record.captions[0].text for record in read_captions(work.child("captions/src/key"), "g")}


def wrong(work: Storage) -> dict[str, str]:
    """Return the captions that do not name the colour that their image's name does."""
    return {name: text for name, text in texts(work).items() if text != f"a {name[2:-4]} square"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_asked_as_it_was_taught(captioners: dict[str, Path], kind: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 5)
    written = []
    for size in (1, 2, 8):
        work = MemoryStorage(f"models-{kind}-{size}")
        assert run(root, work, model=str(captioners[kind]), batch_size=size)["captioned"] == 5
        assert wrong(work) == {}
        written.append(work.read("captions/src/key/g.jsonl"))
    assert written[0] == written[1] == written[2]


def test_several_captioners_write_a_caption_each(captioners: dict[str, Path], tmp_path: Path) -> None:
    work = MemoryStorage("models-several")
    names = [str(captioners[kind]) for kind in ("qwen", "florence")]
    run(photos(tmp_path / "photos"), work, model=names, prefix="photo of ")
    for record in read_captions(work.child("captions/src/key"), "g"):
        # They agree, and the same caption twice is one.
        assert record.captions == (Caption(f"photo of a {record.name[2:-4]} square", record.captions[0].by),)
        assert record.captions[0].by.startswith(f"model:{names[0]}@")
    run(tmp_path / "photos", work, model=names, prompt="<CAPTION>")
    assert {len(record.captions) for record in read_captions(work.child("captions/src/key"), "g")} <= {1, 2}


class Full:
    """Memory that holds a batch of some size and no larger one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[int] = []
        self._generate = SmolVLMForConditionalGeneration.generate

    def generate(self, model: Any, **inputs: Any) -> Any:
        self.batches.append(len(inputs["input_ids"]))
        if self.batches[-1] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self._generate(model, **inputs)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Full]:
    def limit(most: int) -> Full:
        memory = Full(most)
        monkeypatch.setattr(
            SmolVLMForConditionalGeneration, "generate", lambda model, **inputs: memory.generate(model, **inputs)
        )
        return memory

    return limit


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    captioners: dict[str, Path], full: Callable[[int], Full], tmp_path: Path
) -> None:
    memory, stream, work = full(2), io.StringIO(), MemoryStorage("models-halved")
    result = run(photos(tmp_path / "photos", 9), work, stream, model=str(captioners["smolvlm"]), batch_size=9)
    assert (result["captioned"], result["rejected"], wrong(work)) == (9, 0, {})
    assert memory.batches == [9, 4, 2, 2, 2, 2, 1]
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    shrunk = [(line["batch"], line["next"]) for line in events if line["event"] == "caption-out-of-memory"]
    assert shrunk == [(9, 4), (4, 2)]


def test_a_killed_step_asks_the_captioner_no_image_twice(
    captioners: dict[str, Path], full: Callable[[int], Full], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "SAVE_MODELS_EVERY", 2)
    root = photos(tmp_path / "photos", 9)
    settings: dict[str, Any] = {"model": str(captioners["smolvlm"]), "batch_size": 2}
    whole, killed, memory = MemoryStorage("models-whole"), MemoryStorage("models-killed"), full(2)
    run(root, whole, **settings)
    memory.batches.clear()
    deaths = iter([False, False, True])
    monkeypatch.setattr(
        group, "save_unfinished", lambda *saved: _raise() if next(deaths, False) else save_unfinished(*saved)
    )
    with pytest.raises(StorageError):
        run(root, killed, **settings)
    assert memory.batches == [2, 2, 2]
    run(root, killed, **settings)
    assert memory.batches == [2, 2, 2, 2, 2, 1]  # the third batch was done and not saved
    key = "captions/src/key/g.jsonl"
    assert killed.read(key) == whole.read(key)


def _raise() -> None:
    raise StorageError("no space left")


def test_where_not_one_image_fits_the_step_says_what_would_help(
    captioners: dict[str, Path], full: Callable[[int], Full], tmp_path: Path
) -> None:
    full(0)
    with pytest.raises(OutOfMemory, match=r"caption\.dtype=bf16"):
        run(photos(tmp_path / "photos"), MemoryStorage("models-full"), model=str(captioners["smolvlm"]))


def test_a_image_that_crashes_the_preprocessor_is_rejected_alone(captioners: dict[str, Path], tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 5), MemoryStorage("models-poison")
    Image.new("RGB", (16, 4000), "red").save(root / "5-red.png")  # Qwen takes no image that is 200 times as long
    result = run(root, work, model=str(captioners["qwen"]), batch_size=6, max_side=4000)
    assert (result["captioned"], result["rejected"], wrong(work)) == (5, 1, {})
    (poison,) = read_caption_rejections(work.child("captions/src/key"), "g")
    assert (poison.name, poison.reason) == ("5-red.png", "caption-failed")
    assert "16×4000 px" in poison.detail
    assert "aspect ratio" in poison.detail


def test_a_poison_image_is_not_tried_again(captioners: dict[str, Path], tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 1), MemoryStorage("models-poison-again")
    Image.new("RGB", (16, 4000), "red").save(root / "1-red.png")
    settings: dict[str, Any] = {"model": str(captioners["qwen"]), "max_side": 4000}
    assert run(root, work, **settings)["rejected"] == 1
    source_id = ingest(IngestConfig(source=str(root), limits=LONG), work, Progress(io.StringIO()))["source_id"]
    shutil.rmtree(root)
    root.mkdir()  # were anything read, it would now be unreadable
    config = CaptionConfig.parse({"device": "cpu", "max_new_tokens": 8, **settings})
    quiet = Progress(io.StringIO())
    again = caption(config, LONG, "g", source_id, "src/key", work, quiet)
    assert (again["captioned"], again["reused"], again["rejected"]) == (0, 1, 1)


def test_a_captioner_that_fails_on_any_image_stops_the_step(captioners: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(captioners["qwen"], tmp_path / "broken")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] |= {"patch_size": 7}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DarkroomError, match="fails on any"):
        run(photos(tmp_path / "photos"), MemoryStorage("models-broken"), model=str(folder))


def test_a_chat_template_that_takes_no_image_is_a_wrong_setting(captioners: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(captioners["qwen"], tmp_path / "broken")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content.strip() }}")
    with pytest.raises(ConfigError, match="chat template"):
        run(photos(tmp_path / "photos"), MemoryStorage("models-template"), model=str(folder))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_captioner_may_compute_in_half_precision(captioners: dict[str, Path], dtype: str, tmp_path: Path) -> None:
    work = MemoryStorage(f"models-{dtype}")
    assert run(photos(tmp_path / "photos"), work, model=str(captioners["smolvlm"]), dtype=dtype)["captioned"] == 4
    assert wrong(work) == {}


@pytest.mark.proof
def test_two_processes_make_what_one_makes(captioners: dict[str, Path], tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 7)
    written = []
    for processes in (1, 2):
        work = open_storage(str(tmp_path / f"work-{processes}"))
        run(root, work, model=str(captioners["smolvlm"]), batch_size=2, processes=processes)
        assert wrong(work) == {}
        written.append({entry.key: work.read(entry.key) for entry in work.list("captions")})
    assert written[0] == written[1]
    assert sorted(written[1]) == ["captions/src/key/g.jsonl", "captions/src/key/g.rejected.jsonl"]


@pytest.mark.proof
def test_the_error_of_one_process_is_the_steps(captioners: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(captioners["smolvlm"], tmp_path / "broken")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        run(photos(tmp_path / "photos"), open_storage(str(tmp_path / "work")), model=str(folder), processes=2)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(captioners: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository owner/name in the hub's cache, whose own code leaves a file behind when it runs."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    repository = tmp_path / "hub/models--owner--name"
    folder = shutil.copytree(captioners["florence"], repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Florence2Config, Florence2ForConditionalGeneration\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Config(Florence2Config): pass\n"
        "class Model(Florence2ForConditionalGeneration): config_class = Config\n"
    )
    own = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": own}))
    return folder


@pytest.mark.parametrize("model", ["owner/name", "owner/name@main", f"owner/name@{COMMIT}"])
def test_a_captioner_of_the_hub_signs_with_the_revision_that_was_used(hub: Path, model: str, tmp_path: Path) -> None:
    work = MemoryStorage(f"models-hub-{len(model)}")
    run(photos(tmp_path / "photos"), work, model=model)
    (author,) = {record.captions[0].by for record in read_captions(work.child("captions/src/key"), "g")}
    assert author == f"model:owner/name@{COMMIT}"
    assert wrong(work) == {}
    assert not (tmp_path / "ran").exists()


def test_a_captioners_own_code_runs_only_where_its_revision_is_trusted(hub: Path, tmp_path: Path) -> None:
    work = MemoryStorage("models-trusted")
    model = f"owner/name@{COMMIT}"
    run(photos(tmp_path / "photos"), work, model=model, trust_remote_code=model)
    assert wrong(work) == {}
    assert (tmp_path / "ran").exists()


def test_trust_in_one_repository_is_none_in_another(hub: Path, tmp_path: Path) -> None:
    model = f"owner/name@{COMMIT}"
    (hub / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x", "other/name--own.Tokenizer"]}}')
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json.* 'other/name'"):
        run(photos(tmp_path / "photos"), MemoryStorage("models-other"), model=model, trust_remote_code=model)
    assert not (tmp_path / "ran").exists()
