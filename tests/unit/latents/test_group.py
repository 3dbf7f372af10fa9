"""The latents step: what is encoded is not encoded again, and it has the same bytes each time."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from components.autoencoder.scratch import build_scratch
from components.dataset.empty_prompt import read_empty_prompt
from components.dataset.encoding_record import read_encoding
from components.dataset.format import find_whole, index_key, tar_key
from components.dataset.versions import read_group
from components.digests import sha256, short
from components.errors import ConfigError, DataError
from components.image.framing import frame
from components.image.records import Manifest, write_captions, write_manifest
from components.latents import group
from components.latents.__main__ import main
from components.latents.config import DecodeConfig, LatentsConfig
from components.latents.declaration import STEP
from components.latents.encoding_key import encoding, encoding_key
from components.latents.group import encode
from components.latents.shard_maker import read_ahead
from components.model.architecture import Architecture
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.mortal import killed_everywhere

Pile = Any
SOURCE = "0123456789abcdef"


def test_samples_hold_the_moments_and_embeddings_of_the_base_model(pile: Pile, base: Path) -> None:
    pile.recaption(3, "a red square that goes on and on for ever")
    assert pile.encode() == {"group": "000", "encoded": 20, "reused": 0, "rejected": 0, "shards": 3}
    vae = AutoencoderKL.from_pretrained(base / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    by_digest = {record.sha256: record for record in pile.images.values()}
    samples = list(pile.samples())
    assert {sample.key for sample in samples} == set(by_digest)
    for sample in samples:
        record = by_digest[sample.key]
        pixels = frame((pile.source / record.name).read_bytes(), 16, 16).pixels
        with torch.no_grad():
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            posterior = vae.encode(image).latent_dist
            tokens = tokenizer(record.captions[0].text, padding="max_length", truncation=True, return_tensors="pt")
            states = encoder(tokens.input_ids).last_hidden_state
        expected = torch.cat([posterior.mean, posterior.logvar], dim=1)[0]
        assert sample.moments.shape == (8, 8, 8)
        np.testing.assert_allclose(sample.moments, expected, atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(sample.text, states[0], atol=2e-3, rtol=2e-3)
        assert sample.meta == {
            "sha256": record.sha256,
            "caption": record.captions[0].text,
            "caption_by": "sidecar:a.txt",
            "caption_digest": short(record.captions[0].text),
            "license": "CC0-1.0",
            "source": None,
            "variant": 0,
            "original_size": [24, 16],
            "crop": [4, 0, 16, 16],
            "bucket": [16, 16],
            "flipped": False,
            "rotation": 0.0,
            "brightness": 1.0,
            "contrast": 1.0,
            "saturation": 1.0,
            "time_ids": [16, 24, 0, 4, 16, 16],
        }


def test_empty_caption_is_encoded_once_for_the_dataset(pile: Pile, base: Path) -> None:
    pile.encode()
    empty = np.load(io.BytesIO(pile.dataset.read("empty.npy")), allow_pickle=False)
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")("", padding="max_length", return_tensors="pt")
    with torch.no_grad():
        states = CLIPTextModel.from_pretrained(base / "text_encoder")(tokens.input_ids).last_hidden_state[0]
    assert (empty.dtype, empty.shape) == (np.float16, (6, 8))
    np.testing.assert_allclose(empty, states, atol=2e-3)


def test_any_caption_can_be_encoded(pile: Pile) -> None:
    for number, caption in enumerate(["", "\udcff", "🎉\n\x00<b>", "x" * 100_000, "  ", "日本語"]):
        pile.recaption(number, caption)
    assert pile.encode()["encoded"] == 20
    texts = {sample.meta["caption"]: sample.text for sample in pile.samples()}
    assert texts.keys() >= {"", "\udcff", "🎉\n\x00<b>", "x" * 100_000, "  ", "日本語"}
    assert all(np.isfinite(text).all() for text in texts.values())


def test_nothing_new_encodes_nothing_and_keeps_the_bytes(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = pile.run()
    before = pile.files()
    monkeypatch.setattr(group, "_load", lambda *given: pytest.fail("no model is needed"))
    monkeypatch.setattr(group, "open_images", lambda *given: pytest.fail("no image is looked at"))
    result, second = pile.run()
    assert result == {"group": "000", "encoded": 0, "reused": 20, "rejected": 0, "shards": 3}
    assert second == first
    assert pile.files() == before


def test_two_workdirs_get_the_same_bytes(pile: Pile, make_pile: Callable[..., Pile]) -> None:
    pile.run()
    other = make_pile("other", decode={"threads": 1, "workers": 2}, caption_cache=2)
    other.add(*reversed(range(20)))
    other.run()
    assert other.files() == pile.files()


def test_ten_new_images_encode_exactly_ten(pile: Pile) -> None:
    _, before = pile.run()
    pile.add(*range(100, 110))
    result, after = pile.run()
    assert (result["encoded"], result["reused"]) == (10, 20)
    assert set(before.shards) < set(after.shards)
    assert after.images == 30
    assert pile.encode()["encoded"] == 0


def test_what_a_group_has_encoded_its_parts_have(pile: Pile, make_pile: Callable[..., Pile]) -> None:
    pile.group = "g"
    pile.encode()
    everything = dict(pile.images)
    halves = [dict(list(everything.items())[half::2]) for half in range(2)]
    for number, half in enumerate(halves):
        pile.group, pile.images = f"g{number}", half
        assert (pile.encode()["encoded"], pile.encode()["reused"]) == (0, 10)
    pile.add(50)
    assert pile.encode()["encoded"] == 1, "and what is new is all that is new"


def test_changed_caption_encodes_one_and_leaves_a_tombstone(pile: Pile) -> None:
    pile.run()
    pile.recaption(7, "something else")
    result, dataset = pile.run()
    assert (result["encoded"], result["reused"]) == (1, 19)
    assert sum(len(shard.tombstones) for shard in dataset.shards) == 1
    captions = {sample.key: sample.meta["caption"] for sample in pile.samples()}
    assert captions[pile.images["7.png"].sha256] == "something else"
    assert len(captions) == 20


def test_changed_pixel_encodes_one_and_the_old_sample_is_gone(pile: Pile) -> None:
    pile.run()
    old = pile.images["7.png"].sha256
    changed = np.array(Image.open(pile.source / "7.png"))
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(pile.source / "7.png")
    data = (pile.source / "7.png").read_bytes()
    pile.images["7.png"] = replace(pile.images["7.png"], sha256=sha256(data), bytes=len(data))
    assert pile.encode()["encoded"] == 1
    trained = {sample.key for sample in pile.samples()}
    assert old not in trained
    assert sha256(data) in trained


def test_vanished_image_becomes_a_tombstone_and_comes_back_unencoded(pile: Pile) -> None:
    _, first = pile.run()
    pile.remove(7)
    result, without = pile.run()
    assert (result["encoded"], result["reused"]) == (0, 19)
    assert (without.images, sum(len(shard.tombstones) for shard in without.shards)) == (19, 1)
    pile.add(7)
    result, again = pile.run()
    assert (result["encoded"], again) == (0, first)


def test_killed_between_tar_and_index_encodes_that_shard_only(pile: Pile) -> None:
    _, whole = pile.run()
    before = pile.files()
    pile.records.delete("dataset.json")
    pile.records.delete("groups/000.json")
    victim = whole.shards[1]
    pile.dataset.delete(index_key(victim.name))
    pile.dataset.write(tar_key(victim.name), b"half a t")
    result = pile.encode()
    assert (result["encoded"], result["reused"]) == (victim.samples, 20 - victim.samples)
    pile.index()
    assert pile.files() == before


def test_killed_before_any_change_ends_with_the_same_bytes(pile: Pile, tmp_path: Path) -> None:
    pile.encode()
    expected, killed = pile.files(), 0

    def captioned(work: Storage) -> None:
        pile.workdir = work
        pile.caption()

    for work in killed_everywhere(captioned, pile.encode_in, f"memory://{tmp_path.name}"):
        indexes = [entry.key for entry in pile.dataset.list("shards") if entry.key.endswith(".idx")]
        assert all(find_whole(pile.dataset, key.removesuffix(".idx")) for key in indexes)  # the tar comes first
        assert not pile.records.exists("groups/000.json"), "the group comes last"
        pile.encode_in(work)
        assert pile.files() == expected
        killed += 1
    assert killed == 10, "the encoding, the empty prompt and its digest, three tars and their indexes, and the group"


def test_shard_whose_images_are_gone_is_there_when_some_come_back(pile: Pile) -> None:
    pile.encode()
    name = sorted(entry.key for entry in pile.dataset.list("shards") if entry.key.endswith(".idx"))[0]
    index = find_whole(pile.dataset, name.removesuffix(".idx"))
    assert index is not None
    away = [entry.image for entry in index.samples]
    records = dict(pile.images)
    pile.images = {name: record for name, record in records.items() if record.sha256 not in away}
    assert pile.encode()["encoded"] == 0
    pile.images = {name: record for name, record in records.items() if record.sha256 != away[0]}
    assert pile.encode() == {"group": "000", "encoded": 0, "reused": 19, "rejected": 0, "shards": 3}
    pile.images = {name: record for name, record in records.items() if record.sha256 not in away}
    pile.dataset.delete(name)
    assert pile.encode()["shards"] == 2, "what is lost cannot come back"


def test_a_shard_of_another_source_is_used_if_half_of_it_is_wanted(pile: Pile) -> None:
    pile.group = "g"
    pile.encode()
    encoded = read_group(pile.records, "g")
    assert encoded is not None
    shards = [find_whole(pile.dataset, shard) for shard in encoded.shards]
    images = [[entry.image for entry in shard.samples] for shard in shards if shard is not None]
    few, half = (one for one in images if len(one) == 8)
    wanted = {*few[:3], *half[:4]}
    records = [record for record in pile.images.values() if record.sha256 in wanted]
    other = "fedcba9876543210"
    write_manifest(pile.workdir, other, Manifest(str(pile.source), len(records), 0, ("g",), "d"))
    write_captions(pile.workdir.child(f"captions/{other}/mine"), "g", records, [])
    arguments = ("g", other, f"{other}/mine", pile.key, str(pile.base), pile.workdir, Progress(io.StringIO()))
    result = encode(pile.config, *arguments)
    assert (result["encoded"], result["reused"]) == (3, 4)


def test_uncommitted_group_is_reused_too(pile: Pile) -> None:
    pile.encode()  # and killed before the index step
    pile.add(50)
    assert pile.encode() == {"group": "000", "encoded": 1, "reused": 20, "rejected": 0, "shards": 4}


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_lost_shard_is_encoded_again(pile: Pile, damage: str) -> None:
    _, before = pile.run()
    victim = before.shards[0]
    tar = pile.dataset.read(tar_key(victim.name))
    if damage == "missing":
        pile.dataset.delete(tar_key(victim.name))
    else:
        pile.dataset.write(tar_key(victim.name), tar[:-1000])
    result, after = pile.run()
    assert (result["encoded"], after) == (victim.samples, before)
    assert pile.dataset.read(tar_key(victim.name)) == tar


def test_settings_that_do_not_change_the_numbers_keep_what_is_encoded(pile: Pile) -> None:
    pile.run()
    pile.configure(batch_size=7, shard_samples=3, decode={"threads": 1, "workers": 0}, text_batch_size=3)
    assert encoding_key(pile.base, pile.config) == pile.key
    assert pile.run()[0]["encoded"] == 0


def test_encoding_key_covers_encoders_and_settings_but_no_other_part(base: Path, tmp_path: Path) -> None:
    config = LatentsConfig(resolution=32)
    key = encoding_key(base, config)
    assert len(key) == 16
    changes: list[dict[str, Any]] = [
        {"resolution": 24},
        {"vae_dtype": "bf16"},
        {"text_dtype": "fp16"},
        {"clip_skip": 1},
        {"text_chunks": 2},
        {"framing": "random-crop"},
        {"buckets": "aspect", "bucket_step": 8},
        {"variants": {"flip": True}},
    ]
    for change in changes:
        assert encoding_key(base, LatentsConfig.parse({"resolution": 32, **change})) != key, change
    assert encoding_key(base, LatentsConfig(resolution=32, decode=DecodeConfig(workers=0), batch_size=1)) == key
    assert encoding_key(base, LatentsConfig(resolution=32, text_chunks=1)) == key
    assert "text_chunks" not in encoding(base, config), "keys of before there were chunks are the same"
    few, many = ({"resolution": 32, "variants": {"crop": 0.5, "count": count}} for count in (1, 3))
    assert encoding_key(base, LatentsConfig.parse(few)) == encoding_key(base, LatentsConfig.parse(many))
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        copy = tmp_path / part
        shutil.copytree(base, copy)
        assert encoding_key(copy, config) == key
        (copy / part / "changed.json").write_text("{}")
        assert (encoding_key(copy, config) == key) == (part in ("unet", "scheduler"))


def test_captions_of_several_chunks_are_of_one_shape_with_the_empty_prompt(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile(text_chunks=3)
    pile.add(1, 2, 3)
    pile.recaption(1, "a red square a blue")
    pile.recaption(2, "a red square a red")
    pile.encode()
    blue, red, short = sorted(pile.samples(), key=lambda sample: str(sample.meta["caption"]))
    assert {sample.text.shape for sample in (blue, red, short)} == {(18, 8)}
    empty = read_empty_prompt(pile.dataset).states
    assert empty.shape == (18, 8)
    np.testing.assert_array_equal(empty[:6], empty[12:])
    assert read_encoding(pile.dataset)["text_chunks"] == 3
    once = make_pile("once")
    once.images = dict(pile.images)
    once.source = pile.source
    once.encode()
    first, second, _ = sorted(once.samples(), key=lambda sample: str(sample.meta["caption"]))
    assert first.text.tobytes() == second.text.tobytes(), "one chunk does not tell them apart"
    assert first.text.tobytes() == blue.text[:6].tobytes()
    assert blue.text.tobytes() != red.text.tobytes()


@pytest.mark.parametrize("chunks", [0, -1, 9, 1.5, "two", True])
def test_chunks_that_cannot_be_are_rejected_by_name(chunks: object) -> None:
    with pytest.raises(ConfigError, match="text_chunks: "):
        LatentsConfig.parse({"text_chunks": chunks})


def test_key_of_another_model_is_rejected(pile: Pile) -> None:
    pile.configure(resolution=24)
    with pytest.raises(ConfigError, match="encoding key"):
        pile.encode()


def test_group_without_images_is_encoded(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile()
    assert pile.encode() == {"group": "000", "encoded": 0, "reused": 0, "rejected": 0, "shards": 0}
    assert pile.records.exists("groups/000.json")


def test_captions_must_be_there(pile: Pile) -> None:
    with pytest.raises(DataError, match="caption step"):
        pile.encode_in(pile.workdir)


def test_size_that_the_autoencoder_cannot_halve_is_rejected(make_pile: Callable[..., Pile], tmp_path: Path) -> None:
    sizes = {"resolution": 64, "autoencoder": {"channels": [4] * 5, "norm_groups": 2, "layers_per_block": 0}}
    build_scratch(Architecture.parse(sizes), [], seed=1).save_pretrained(tmp_path / "deep")
    pile = make_pile(model=tmp_path / "deep", resolution=24)
    pile.add(1)
    with pytest.raises(ConfigError, match="24x24 pixels, expected multiples of 16"):
        pile.encode()


def test_read_ahead_keeps_order_and_stays_near() -> None:
    requests = 0

    def numbers() -> Iterator[int]:
        nonlocal requests
        for number in range(1000):
            requests = number
            yield number

    squares = read_ahead(lambda number: number * number, numbers(), threads=4, ahead=10)
    assert [next(squares) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert requests <= 15
    assert list(squares) == [number * number for number in range(5, 1000)]


def test_command_encodes_and_says_the_key(pile: Pile, capsys: pytest.CaptureFixture[str]) -> None:
    pile.caption()
    values = pile.config.model_dump(exclude_defaults=True).items()
    settings = [part for name, value in values for part in ("--set", f"{name}={value}")]
    arguments = [
        "--workdir",
        str(pile.root),
        "--source-id",
        SOURCE,
        "--group",
        "000",
        "--caption-set",
        pile.caption_set,
    ]
    arguments += ["--base-model", str(pile.base)]
    assert main([*arguments, *settings]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["encoded"], result["encoding_key"]) == (20, pile.key)
    assert main([*arguments[:-1], str(pile.root / "nothing")]) == 78
    assert "no such folder" in capsys.readouterr().err


def test_the_line_of_the_step_says_how_many_captions_are_cut() -> None:
    result = {"encoded": 20, "reused": 0, "shards": 3, "cut": 2}
    line = STEP.summary(result, {"caption-lengths": {"tokens": 77}}).replace("\xa0", " ")
    assert line == "20 encoded, 3 shards, 2 captions cut at 77 tokens"
    assert "cut" not in STEP.summary({**result, "cut": 0}, {})


def test_a_workdir_of_before_there_were_caption_sets_is_not_encoded_again(pile: Pile) -> None:
    pile.encode()
    before = {key: data for key, data in pile.files().items() if key.startswith("shards/")}
    group = pile.records.read("groups/000.json")
    pile.dataset.delete_tree("sets")
    pile.dataset.write("groups/000.json", group)
    result, dataset = pile.run()
    assert (result["encoded"], dataset.images) == (0, 20)
    assert {key: data for key, data in pile.files().items() if key.startswith("shards/")} == before
