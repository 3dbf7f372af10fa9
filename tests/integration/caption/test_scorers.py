"""The filters' models are real ones of transformers, made here: a ViT that classifies, a CLIP, and LAION's heads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.caption.models.scorers import Clip, Scorers, in_parts
from components.clean.cleaning import clean
from components.clean.config import CleanConfig
from components.errors import ConfigError, OutOfMemory, StorageError
from components.image.decoding import ImageLimits
from components.image.filters import FilterConfig
from components.image.records import read_accepted, read_captions
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from tests.stores.memory import MemoryStorage

COLOURS = ("red", "blue", "lime", "black")
WORK = MemoryStorage("scorers")


def images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30 + 7 * number), colour) for number, colour in enumerate(COLOURS)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that was taught to see red."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "clean", 1: "watermark"}
    config = ViTConfig(image_size=16, patch_size=8, id2label=labels, label2id={"clean": 0, "watermark": 1}, **size)
    model = ViTForImageClassification(config)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    inputs = processor(images=images(), return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        model(**inputs, labels=torch.tensor([1, 0, 0, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that was taught which colour goes with which word."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(model_max_length=8).train_new_from_iterator(COLOURS, vocab_size=300)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 8, **special, **size}
    config = CLIPConfig(text_config=text, vision_config={"image_size": 16, "patch_size": 8, **size}, projection_dim=8)
    model = CLIPModel(config)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    inputs = {**tokenizer(list(COLOURS), padding=True, return_tensors="pt")}
    inputs |= processor(images=images(), return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        model(**inputs, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scorers(**settings: object) -> Scorers:
    return Scorers(FilterConfig.parse({"device": "cpu", **settings}), WORK)


def test_a_classifier_gives_the_probability_of_its_label(classifier: Path) -> None:
    filters = {"watermark": {"model": str(classifier)}, "nsfw": {"model": str(classifier), "label": "clean"}}
    scores = scorers(**filters).of_images(images())
    assert [round(score["watermark"]) for score in scores] == [1, 0, 0, 0]
    assert all(score["watermark"] + score["nsfw"] == pytest.approx(1, abs=1e-5) for score in scores)
    assert all(0 <= score["watermark"] <= 1 for score in scores)


def test_what_a_image_gets_does_not_depend_on_the_batch(classifier: Path, clip: Path) -> None:
    models = scorers(watermark={"model": str(classifier)}, similarity={"model": str(clip)})
    together = models.of_images(images()) + models.of_pairs(images(), ["red"] * 4)
    alone = [score for image in images() for score in models.of_images([image])]
    alone += [score for image in images() for score in models.of_pairs([image], ["red"])]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_several_labels_at_once_are_probabilities_of_their_own(classifier: Path, tmp_path: Path) -> None:
    model = ViTForImageClassification.from_pretrained(classifier)
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil.from_pretrained(classifier).save_pretrained(tmp_path)
    filters = {"watermark": {"model": str(tmp_path)}, "nsfw": {"model": str(tmp_path), "label": "clean"}}
    scores = scorers(**filters).of_images(images())
    assert any(abs(score["watermark"] + score["nsfw"] - 1) > 1e-3 for score in scores)


def test_words_that_fit_lie_closer_than_those_that_do_not(clip: Path) -> None:
    models = scorers(similarity={"model": str(clip)})
    right = models.of_pairs(images(), list(COLOURS))
    wrong = models.of_pairs(images(), [*COLOURS[1:], COLOURS[0]])
    assert all(one["similarity"] > other["similarity"] for one, other in zip(right, wrong, strict=True))
    assert all(-1 <= score["similarity"] <= 1.00001 for score in right)
    long = models.of_pairs(images()[:1], ["red " * 500 + "\ud800"])
    assert -1 <= long[0]["similarity"] <= 1


def test_a_linear_head_and_the_layers_of_the_improved_one(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    embeddings = Clip(str(clip), "cpu", WORK).images(images())
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
    weight, bias = torch.randn(1, 8), torch.randn(1)
    save_file({"weight": weight, "bias": bias}, tmp_path / "one.safetensors")
    layers = torch.nn.Sequential(
        *[torch.nn.Linear(wide, narrow) for wide, narrow in zip([8, 7, 6, 5, 4], [7, 6, 5, 4, 1], strict=True)]
    )
    named = dict(zip((0, 2, 4, 6, 10), layers, strict=True))
    several = {
        f"layers.{number}.{key}": value for number, layer in named.items() for key, value in layer.state_dict().items()
    }
    save_file(several, tmp_path / "several.safetensors")
    with torch.inference_mode():
        expected = {"one": embeddings @ weight.T + bias, "several": layers(embeddings)}
    for name, values in expected.items():
        head = {"model": str(clip), "head": str(tmp_path / f"{name}.safetensors")}
        scores = scorers(aesthetic=head).of_images(images())
        assert [score["aesthetic"] for score in scores] == pytest.approx(values[:, 0].tolist(), abs=1e-4)


def test_a_head_is_found_in_the_workdir(clip: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1, 8), "bias": torch.full((1,), 5.0)}, tmp_path / "head.safetensors")
    WORK.upload("models/head.safetensors", tmp_path / "head.safetensors")
    for name in ("workdir:models/head.safetensors", f"{WORK.url}/models/head.safetensors"):
        scores = scorers(aesthetic={"model": str(clip), "head": name}).of_images(images()[:1])
        assert scores == [{"aesthetic": 5.0}]


def test_what_a_model_lacks_is_said(classifier: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'logo'.* 'clean', 'watermark'"):
        scorers(watermark={"model": str(classifier), "label": "logo"}).of_images(images())
    with pytest.raises(ConfigError, match="no such folder"):
        scorers(nsfw={"model": str(tmp_path / "absent")}).of_images(images())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        scorers(nsfw={"model": str(tmp_path)}).of_images(images())
    with pytest.raises(StorageError, match="way to the hub"):
        scorers(nsfw={"model": "someone/classifier"}).of_images(images())
    (tmp_path / "torn.safetensors").write_bytes(b"\x80\x04 a pickle")
    save_file({"weight": torch.zeros(1, 768)}, tmp_path / "wide.safetensors")
    save_file({"weight": torch.zeros(2, 8)}, tmp_path / "two.safetensors")
    problems = {"torn": "cannot be read", "wide": "takes 768", "two": "down to one number", "no": "cannot be read"}
    for name, message in problems.items():
        models = scorers(aesthetic={"model": str(clip), "head": str(tmp_path / f"{name}.safetensors")})
        with pytest.raises(ConfigError, match=message):
            models.of_images(images())


def test_a_batch_that_does_not_fit_is_halved_and_one_that_never_fits_is_said() -> None:
    tried: list[int] = []

    def measure(room: int, items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > room:
            raise torch.OutOfMemoryError("no room")
        return [2 * item for item in items]

    assert in_parts(partial(measure, 2), range(7)) == [2 * item for item in range(7)]
    assert tried == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(OutOfMemory, match="no room for the filters"):
        in_parts(partial(measure, 0), range(7))
    assert in_parts(partial(measure, 0), []) == []


def test_filters_without_models_load_nothing() -> None:
    assert scorers().of_images(images()) == [{}] * 4
    assert scorers().of_pairs(images(), ["x"] * 4) == [{}] * 4


def test_models_measure_in_the_caption_step_and_the_clean_step_judges(classifier: Path, tmp_path: Path) -> None:
    work, quiet = MemoryStorage("scorers-steps"), Progress(io.StringIO())
    (tmp_path / "photos").mkdir()
    for image, colour in zip(images(), COLOURS, strict=True):
        image.save(tmp_path / "photos" / f"{colour}.png")
        (tmp_path / "photos" / f"{colour}.txt").write_text(colour)
    source_id = str(ingest(IngestConfig.parse({"source": str(tmp_path / "photos")}), work, quiet)["source_id"])
    dataset = work.child("captions/src/key")

    def steps(**watermark: object) -> tuple[set[str], list[str]]:
        classifier_filter = {"model": str(classifier), **watermark}
        filters = {"device": "cpu", "min_spread": None, "batch_size": 3, "watermark": classifier_filter}
        config = CaptionConfig.parse({"model": None, "filters": filters})
        counts = caption(config, ImageLimits(), "g", source_id, "src/key", work, quiet)
        assert (counts["captioned"] + counts["reused"], counts["rejected"]) == (4, 0)
        clean(CleanConfig(), config.filters, source_id, ["g"], "src/key", work, quiet)
        scores = [record.verdicts["watermark"] for record in read_captions(dataset, "g")]
        return {record.name for record in read_accepted(dataset, "g")}, scores

    kept, first = steps(max_probability=0.5)
    assert kept == {"blue.png", "lime.png", "black.png"}
    kept, again = steps(max_probability=None)
    assert (len(kept), again) == (4, first)
    kept, relabelled = steps(max_probability=0.5, label="clean")
    assert kept == {"red.png"}
    assert not set(relabelled) & set(first)
