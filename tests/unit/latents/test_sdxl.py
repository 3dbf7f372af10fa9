"""SDXL: two text encoders, a pooled embedding and micro-conditioning, as diffusers' own pipeline has them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from components.autoencoder.scratch import build_scratch
from components.dataset.format import Added, tar_key
from components.dataset.reader import ShardReader
from components.dataset.tars import open_ranged, open_whole
from components.errors import ConfigError, DataError
from components.latents.config import LatentsConfig
from components.latents.text_encoder import TextEncoder
from components.model.architecture import Architecture
from components.storage.base import Storage
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, Reader
from components.train.metrics.validation import Validation
from components.train.setup import _check_conditioning
from components.train.step.flops import forward_flops
from components.train.step.loss import denoising_loss
from tests.stores.mortal import killed_everywhere

Pile = Any
TEXT, TEXT_2, POOLED = 8, 12, 10
LATENT = (4, 8, 8)


def text_config(hidden: int, vocabulary: int, **more: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
        **more,
    )


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with SDXL's parts."""
    folder = tmp_path_factory.mktemp("sdxl")
    sizes = {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": TEXT, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
    scratch = build_scratch(Architecture.parse(sizes), ["a red square"], seed=1)
    words = len(scratch.tokenizer)
    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        vae=scratch.vae,
        text_encoder=CLIPTextModel(text_config(TEXT, words)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(TEXT_2, words, projection_dim=POOLED)).eval(),
        tokenizer=scratch.tokenizer,
        tokenizer_2=scratch.tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            cross_attention_dim=TEXT + TEXT_2,
            attention_head_dim=2,
            norm_num_groups=2,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=POOLED + 6 * 4,
        ),
        scheduler=DDPMScheduler(),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def pile(make_pile: Callable[..., Pile], sdxl: Path) -> Pile:
    pile = make_pile(model=sdxl, variants={"count": 2, "flip": True})
    pile.add(*range(9), size=(24, 16))
    return pile


@pytest.mark.parametrize("skip", [0, 1])
def test_text_is_what_the_pipeline_makes_of_it(sdxl: Path, skip: int) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    captions = ["a red square", "", "something much longer than fits"]
    config = LatentsConfig(clip_skip=skip)
    embeddings = TextEncoder(sdxl, config, torch.device("cpu")).encode(captions)
    for caption in captions:
        with torch.no_grad():
            states, _, pooled, _ = pipeline.encode_prompt(
                caption, do_classifier_free_guidance=False, clip_skip=skip or None
            )
        np.testing.assert_allclose(embeddings[caption].states, states[0], atol=2e-3, rtol=2e-3)
        embedding = embeddings[caption]
        assert embedding.pooled is not None
        np.testing.assert_allclose(embedding.pooled, pooled[0], atol=2e-3, rtol=2e-3)
        assert embedding.finite


@pytest.mark.parametrize("skip", [0, 1])
def test_chunks_of_two_encoders_are_side_by_side_with_the_first_ones_pooled_embedding(sdxl: Path, skip: int) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    chunks = ["red red red red", "square", ""]  # of four tokens at most
    parts = []
    for chunk in chunks:
        with torch.inference_mode():
            parts.append(pipeline.encode_prompt(chunk, do_classifier_free_guidance=False, clip_skip=skip or None))
    config = LatentsConfig(text_chunks=3, clip_skip=skip, text_batch_size=1)
    caption = " ".join(chunks)
    embedding = TextEncoder(sdxl, config, torch.device("cpu")).encode([caption])[caption]
    assert embedding.states.tobytes() == torch.cat([part[0] for part in parts], dim=1).half().numpy().tobytes()
    assert embedding.pooled is not None
    assert embedding.pooled.tobytes() == parts[0][2].half().numpy().tobytes()


def test_too_many_layers_cannot_be_skipped(sdxl: Path) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip is 2, .* 3 layers"):
        TextEncoder(sdxl, LatentsConfig(clip_skip=2), torch.device("cpu"))


def test_one_encoder_skips_layers_as_its_pipeline_does(tmp_path: Path) -> None:
    sizes = {"resolution": 32, "text": {"hidden": 8, "layers": 3, "heads": 2, "max_tokens": 6}}
    base = build_scratch(Architecture.parse(sizes), ["a red square"], seed=1)
    base.save_pretrained(tmp_path)
    embeddings = TextEncoder(tmp_path, LatentsConfig(clip_skip=1), torch.device("cpu")).encode(["a red square"])
    ids = base.tokenizer("a red square", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = base.text_encoder(ids, output_hidden_states=True)
        expected = base.text_encoder.final_layer_norm(output.hidden_states[-2])[0]
    np.testing.assert_allclose(embeddings["a red square"].states, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
def test_samples_tell_what_sdxl_wants_to_know(pile: Pile, open_tar: Any) -> None:
    _, dataset = pile.run()
    shard = max(dataset.shards, key=lambda shard: shard.samples)
    reader = ShardReader(pile.dataset, shard.name, shard.sha256, open_tar=open_tar)
    assert (reader.text_shape, reader.pooled_shape) == ((6, TEXT + TEXT_2), (POOLED,))
    added = Added(np.empty((2, POOLED), np.float16), np.empty((2, 6), np.int32))
    moments = np.empty((2, 8 * 8 * 8), np.float16)
    text = np.empty((2, 6 * (TEXT + TEXT_2)), np.float16)
    reader.copy([3, 0], moments, text, added)
    for row, number in enumerate([3, 0]):
        sample = reader.sample(number)
        assert sample.added is not None
        np.testing.assert_array_equal(moments[row], sample.moments.reshape(-1))
        np.testing.assert_array_equal(text[row], sample.text.reshape(-1))
        np.testing.assert_array_equal(added.pooled[row], sample.added.pooled)
        np.testing.assert_array_equal(added.time_ids[row], sample.added.time_ids)
        assert sample.added.time_ids.tolist() == sample.meta["time_ids"] == [16, 24, 0, 4, 16, 16]
    empty = np.load(io.BytesIO(pile.dataset.read("empty.pooled.npy")), allow_pickle=False)
    assert (empty.shape, empty.dtype) == ((POOLED,), np.float16)


def test_killed_anywhere_the_empty_caption_comes_with_its_pooled_embedding(
    make_pile: Callable[..., Pile], sdxl: Path, tmp_path: Path
) -> None:
    pile = make_pile(model=sdxl)
    pile.add(1, 2)
    pile.encode()
    expected, killed = pile.files(), 0

    def captioned(work: Storage) -> None:
        pile.workdir = work
        pile.caption()

    for work in killed_everywhere(captioned, pile.encode_in, f"memory://{tmp_path.name}"):
        if pile.dataset.exists("empty.npy"):
            assert pile.dataset.exists("empty.pooled.npy")
        pile.encode_in(work)
        assert pile.files() == expected
        killed += 1
    assert killed == 7, "the encoding, two embeddings and their digests, a tar, its index and the group"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_open_in_webdataset_with_one_key_per_sample(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset.utils, "enforce_security", True)
    _, dataset = pile.run()
    members = []
    for shard in dataset.shards:
        path = str(pile.dataset.local_path(tar_key(shard.name)))
        members += list(webdataset.WebDataset(path, shardshuffle=False).decode())
    images = {record.sha256 for record in pile.images.values()}
    assert {one["__key__"] for one in members} == images | {f"{image}-1" for image in images}
    assert len(members) == 18
    for one in members:
        assert one["pooled.npy"].shape == (POOLED,)
        assert one["time_ids.npy"].tolist() == one["json"]["time_ids"]
        assert one["json"]["sha256"] == one["__key__"][:64]


def test_damaged_additions_are_found(pile: Pile) -> None:
    _, dataset = pile.run()
    shard = dataset.shards[0]
    tar = bytearray(pile.dataset.read(tar_key(shard.name)))
    position = tar.find(b".time_ids.npy")
    tar[position + 600] ^= 0xFF
    pile.dataset.write(tar_key(shard.name), bytes(tar))
    with pytest.raises(DataError, match=shard.name):
        ShardReader(pile.dataset, shard.name, shard.sha256)


def test_reader_hands_on_and_drops_all_of_a_caption(pile: Pile, sdxl: Path) -> None:
    _, dataset = pile.run()
    samples = {sample.key: sample for sample in pile.samples()}
    empty = np.load(io.BytesIO(pile.dataset.read("empty.pooled.npy")), allow_pickle=False)
    drawing = Drawing(seed=1, timesteps=1000, scaling_factor=1.0, caption_dropout=0.5)
    config = TrainConfig(global_batch=6, micro_batch=6)
    reader = Reader(dataset, pile.dataset, drawing, config, 0, 1)
    dropped = 0
    for step in range(3):
        (batch,) = reader.read(step)
        assert batch.pooled is not None
        assert batch.time_ids is not None
        for row, key in enumerate(batch.keys):
            added = samples[key].added
            assert added is not None
            assert batch.time_ids[row].tolist() == added.time_ids.tolist()
            without = np.array_equal(batch.pooled[row], empty)
            assert without or np.array_equal(batch.pooled[row], added.pooled)
            dropped += without
        rows = list(batch.rows())
        assert torch.equal(rows[2].pooled, batch.pooled[2:3])  # type: ignore[arg-type]
        moved = batch.to(torch.device("cpu"), torch.bfloat16)
        assert moved.time_ids is not None
        assert moved.time_ids.dtype == torch.float32
    assert 3 <= dropped <= 15
    unet = UNet2DConditionModel.from_pretrained(sdxl / "unet")
    losses = denoising_loss(unet, DDPMScheduler(), batch.to(torch.device("cpu"), torch.float32))
    assert losses.shape == (6,)
    assert losses.isfinite().all()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert unet.add_embedding.linear_1.weight.grad.abs().sum() > 0, "the conditioning reaches the model"
    assert forward_flops(unet, LATENT, (6, TEXT + TEXT_2)) > 0
    reader.close()


def test_held_out_samples_are_conditioned_too(pile: Pile) -> None:
    pile.encode()
    dataset = pile.index(held_out=0.5)
    drawing = Drawing(seed=1, timesteps=1000, scaling_factor=1.0, caption_dropout=0.5)
    validation = Validation(dataset, pile.dataset, drawing, TrainConfig(), 0, 1)
    batch = validation._read(validation._chosen)
    assert batch.pooled is not None
    assert batch.time_ids is not None
    assert len(batch.pooled) == len(batch.time_ids) == sum(len(shard.held_out) for shard in dataset.shards) > 0


def test_model_of_sdxl_rejects_samples_of_others(sdxl: Path, make_pile: Callable[..., Pile]) -> None:
    unet = UNet2DConditionModel.from_pretrained(sdxl / "unet")
    pile = make_pile("plain")
    pile.add(0)
    pile.encode()
    with pytest.raises(DataError, match="pooled text embeddings"):
        _check_conditioning(unet, pile.dataset)
