"""Images that cannot be encoded: rejected with a reason, once, while the others go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from components.dataset.versions import read_group
from components.errors import DataError, ImageRejected, StorageError
from components.image.framing import Frame, frame
from components.latents import shard_maker
from components.latents.encoders import Encoders, Moments
from components.latents.image_decoder import ThreadDecoder
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from tests.stores.mortal import contents, killed_everywhere

Pile = Any


def reasons(pile: Pile) -> dict[str, str]:
    return {line["name"]: line["reason"] for line in pile.records.read_records("groups/000.rejected.jsonl")}


@pytest.mark.parametrize(
    ("change", "reason"), [("replaced", "changed"), ("cut off", "changed"), ("deleted", "unreadable")]
)
def test_image_that_changed_since_it_was_accepted_is_left_out_until_it_is_back(
    pile: Pile, change: str, reason: str
) -> None:
    path = pile.source / "7.png"
    good = path.read_bytes()
    match change:
        case "replaced":
            shutil.copyfile(pile.source / "8.png", path)
        case "deleted":
            path.unlink()
        case "cut off":
            path.write_bytes(good[:100])
    result, dataset = pile.run()
    assert (result["encoded"], result["rejected"], dataset.images) == (19, 1, 19)
    assert reasons(pile) == {"7.png": reason}
    group = read_group(pile.records, pile.group)
    assert group is not None
    assert group.rejected == frozenset(), "for the time being"
    path.write_bytes(good)
    result, dataset = pile.run()
    assert (result["encoded"], result["reused"], result["rejected"]) == (1, 19, 0)
    assert (dataset.images, dataset.rejected, reasons(pile)) == (20, 0, {})


def test_image_that_does_not_decode_is_left_out_for_good(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    pile.put("poison.png", b"no image")
    result, dataset = pile.run()
    assert (result["encoded"], result["rejected"], dataset.images, dataset.rejected) == (20, 1, 20, 1)
    assert reasons(pile) == {"poison.png": "not-an-image"}
    monkeypatch.setattr(shard_maker, "open_decoder", lambda *given: pytest.fail("nothing is to be decoded"))
    files = pile.files()
    result, again = pile.run()
    assert (result["encoded"], result["reused"], result["rejected"]) == (0, 20, 1)
    assert (again, pile.files()) == (dataset, files)


def test_rejection_of_an_image_that_is_no_longer_there_is_forgotten(pile: Pile) -> None:
    pile.put("poison.png", b"no image")
    assert pile.encode()["rejected"] == 1
    del pile.images["poison.png"]
    assert pile.encode() == {"group": "000", "encoded": 0, "reused": 20, "rejected": 0, "shards": 3}
    assert reasons(pile) == {}


def test_rejected_image_is_tried_again_by_another_decoder(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    pile.put("poison.png", b"no image")
    pile.encode()
    decoded = []

    def decode(self: ThreadDecoder, data: bytes, *given: Any) -> list[Frame]:
        decoded.append(data)
        raise ImageRejected("not-an-image", "still")

    monkeypatch.setattr(ThreadDecoder, "decode", decode)
    monkeypatch.setattr("PIL.__version__", "99")
    assert pile.encode()["rejected"] == 1
    assert decoded == [b"no image"]
    assert pile.encode()["rejected"] == 1
    assert decoded == [b"no image"]


def test_image_that_kills_its_process_stops_no_other(make_pile: Callable[..., Pile], tmp_path: Path) -> None:
    """A real process, limited to less memory than an image needs, and dying of it where it can."""
    pile = make_pile(decode={"workers": 2, "memory_gib": 0.25})
    pile.add(*range(6))
    Image.new("RGB", (9000, 9000)).save(tmp_path / "huge.png")
    pile.put("huge.png", (tmp_path / "huge.png").read_bytes(), size=(9000, 9000))
    result, dataset = pile.run()
    assert (result["encoded"], result["rejected"], dataset.images) == (6, 1, 6)
    assert reasons(pile)["huge.png"] in ("decoder-memory", "decoder-died")


class Mortal(LocalStorage):
    """A folder whose user is killed when it writes once too often."""

    left = 0

    def write(self, key: str, data: bytes) -> None:
        if Mortal.left == 0:
            raise StorageError(f"killed before {key}")
        Mortal.left -= 1
        super().write(key, data)

    def child(self, prefix: str) -> Mortal:
        return Mortal(self.local_path(prefix))


def test_killed_among_poison_images_ends_with_the_same_bytes(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile(shard_samples=5)
    pile.add(*range(20))
    for number in range(4):
        pile.put(f"poison-{number}.png", b"no image %d" % number)
    pile.run()
    expected = pile.files()
    shutil.rmtree(pile.root)
    pile.caption()
    mortal = Mortal(pile.root)
    kills = 0
    while kills < 100:
        Mortal.left = 2  # each life finishes a shard, or finds a poison image or two
        try:
            pile.encode_in(mortal)
            break
        except StorageError:
            kills += 1
    assert 6 <= kills < 100
    pile.index()
    assert pile.files() == expected


def test_group_record_is_written_after_its_rejections(pile: Pile, tmp_path: Path) -> None:
    path = pile.source / "7.png"
    good = path.read_bytes()

    def without_the_image(work: Storage) -> None:
        path.unlink()
        pile.workdir = work
        pile.encode()
        path.write_bytes(good)

    def dataset(work: Storage) -> dict[str, bytes]:
        return contents(work.child(f"datasets/{pile.key}"))

    pile.workdir = open_storage(f"memory://{tmp_path.name}")
    without_the_image(pile.workdir)
    pile.encode()
    expected, killed = dataset(pile.workdir), 0
    for work in killed_everywhere(without_the_image, pile.encode_in, f"memory://{tmp_path.name}-killed"):
        files = dataset(work)
        if (
            files.get(f"sets/{pile.caption_set}/groups/000.json")
            == expected[f"sets/{pile.caption_set}/groups/000.json"]
        ):
            rejections = f"sets/{pile.caption_set}/groups/000.rejected.jsonl"
            assert files[rejections] == expected[rejections]
        pile.encode_in(work)
        assert dataset(work) == expected
        killed += 1
    assert killed == 4, "a tar, its index, the rejections and the group"


def spoil(base: Path, target: Path, part: str, weight: str, value: float) -> Path:
    shutil.copytree(base, target)
    file = next((target / part).glob("*.safetensors"))
    weights = load_file(file)
    weights[weight] = torch.full_like(weights[weight], value)
    save_file(weights, file, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_autoencoder_that_gives_no_numbers_is_found_at_once(
    make_pile: Callable[..., Pile], tmp_path: Path, base: Path, value: float
) -> None:
    pile = make_pile(model=spoil(base, tmp_path / "spoilt", "vae", "quant_conv.bias", value))
    pile.add(1, 2)
    with pytest.raises(DataError, match=r"'\d\.png'.*latents.*fp16"):
        pile.encode()


def test_narrow_precision_that_overflows_is_named(make_pile: Callable[..., Pile], tmp_path: Path, base: Path) -> None:
    spoilt = spoil(base, tmp_path / "spoilt", "text_encoder", "final_layer_norm.bias", 1e6)
    pile = make_pile(model=spoilt, text_dtype="bf16")
    pile.add(1)
    with pytest.raises(DataError, match=r"'1\.png'.*embedding.*latents.text_dtype to fp32"):
        pile.encode()


def test_one_image_whose_latents_overflow_is_rejected(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    # No image gives infinite latents with an honest autoencoder, so here one reports that it did.
    poison = frame((pile.source / "7.png").read_bytes(), 16, 16).pixels
    moments = Encoders.moments

    def overflow(self: Encoders, pixels: NDArray[np.uint8]) -> Moments:
        fits = torch.tensor([not np.array_equal(one, poison) for one in pixels])
        return replace(moments(self, pixels), finite=fits)

    monkeypatch.setattr(Encoders, "moments", overflow)
    result, dataset = pile.run()
    assert (result["encoded"], result["rejected"], dataset.images) == (19, 1, 19)
    assert reasons(pile) == {"7.png": "latents-overflow"}
