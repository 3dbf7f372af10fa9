"""Variants: views that follow from the image and a number, and coordinates that describe the crop."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import cos, radians, sin
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.digests import sha256
from components.image.decoding import ImageLimits, decode
from components.image.framing import PLAIN, View, crop_box, cut, time_ids
from components.latents import image_decoder
from components.latents.config import VariantsConfig
from components.latents.variants import view_of

Pile = Any
ALL = VariantsConfig(count=9, flip=True, crop=0.5, rotation=8, brightness=0.2, contrast=0.3, saturation=0.4)
IMAGES = [sha256(b"%d" % i) for i in range(300)]


def test_variant_is_a_function_of_image_and_number() -> None:
    views = [view_of(image, number, "centre-crop", ALL) for image in IMAGES[:20] for number in range(9)]
    assert views == [view_of(image, number, "centre-crop", ALL) for image in IMAGES[:20] for number in range(9)]
    assert len(set(views)) == 20 * 8 + 1, "all differ, but for the plain ones"
    # As on the day when it was written: another view under an old number would be a lie about what is encoded.
    assert view_of("0" * 64, 1, "centre-crop", ALL) == pytest.approx(view_of("0" * 64, 1, "random-crop", ALL))
    assert json.loads(json.dumps(views[1]._asdict())) == views[1]._asdict()


def test_variants_stay_within_the_settings_and_use_all_of_the_room() -> None:
    views = [view_of(image, number, "centre-crop", ALL) for image in IMAGES for number in range(1, 5)]
    for name, low, high in [
        ("left", 0, 1),
        ("top", 0, 1),
        ("zoom", 0.5, 1),
        ("rotation", -8, 8),
        ("brightness", 0.8, 1.2),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.6, 1.4),
    ]:
        drawn = np.array([getattr(view, name) for view in views])
        assert low <= drawn.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < drawn.max() <= high, name
        assert abs(drawn.mean() - (low + high) / 2) < 0.05 * (high - low), name
    assert [view.flipped for view in views[:4]] == [True, False, True, False]


def test_variant_zero_is_plain_and_only_what_is_asked_for_varies() -> None:
    assert view_of(IMAGES[0], 0, "centre-crop", ALL) == PLAIN
    assert view_of(IMAGES[0], 1, "centre-crop", VariantsConfig(flip=True)) == View(flipped=True)
    anywhere = view_of(IMAGES[0], 0, "random-crop", VariantsConfig())
    assert anywhere == View(left=anywhere.left, top=anywhere.top)
    assert anywhere != view_of(IMAGES[0], 1, "random-crop", VariantsConfig())


@pytest.mark.parametrize("size", [(40, 40), (64, 40), (40, 64), (300, 200), (17, 90), (9, 9)])
def test_turned_and_placed_parts_stay_inside_the_image(size: tuple[int, int]) -> None:
    width, height = size
    white = Image.new("RGB", size, "white")
    for image in IMAGES[:40]:
        for number in range(1, 4):
            view = view_of(image, number, "random-crop", ALL)._replace(brightness=1, contrast=1, saturation=1)
            left, top, wide, tall = crop_box(width, height, 16, 24, view)
            assert 0 <= left <= left + wide <= width
            assert 0 <= top <= top + tall <= height
            assert cut(white, 16, 24, view).pixels.min() > 250, "no black corners"


def test_places_reach_from_edge_to_edge() -> None:
    lefts = {crop_box(100, 50, 8, 8, View(left=left / 1000, top=0.0))[0] for left in range(1000)}
    assert lefts == set(range(51))


def test_a_view_is_what_it_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = cut(image, 20, 20)
    np.testing.assert_array_equal(cut(image, 20, 20, View(flipped=True)).pixels, plain.pixels[:, ::-1])
    corner = cut(image, 20, 20, View(left=0.0, top=0.0, zoom=0.5))
    assert corner.crop == (0, 0, 20, 20)
    np.testing.assert_array_equal(corner.pixels, pixels[:20, :20])
    assert cut(image, 20, 20, View(brightness=0.5)).pixels.mean() == pytest.approx(plain.pixels.mean() / 2, abs=1)
    grey = cut(image, 20, 20, View(saturation=0.0)).pixels
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    spot = Image.new("L", (101, 101))
    spot.putpixel((80, 50), 255)
    turned = cut(spot.convert("RGB").resize((1010, 1010)), 101, 101, View(rotation=45)).pixels[..., 0]
    row, column = np.unravel_index(int(turned.argmax()), turned.shape)
    assert row < 40, "counter-clockwise: what was on the right is on top"
    assert column > 60


@pytest.mark.parametrize("degrees", [3, 8, 30, 45, 89, -20])
@pytest.mark.parametrize(("width", "height"), [(1000, 600), (600, 1000)])
def test_a_rotated_crop_is_within_the_image_and_no_smaller_than_it_must_be(
    width: int, height: int, degrees: float
) -> None:
    left, top, across, down = crop_box(width, height, 64, 64, View(rotation=degrees))
    cosine, sine = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    wide, tall = across * cosine + down * sine, across * sine + down * cosine
    middle = left + across / 2, top + down / 2
    assert middle == pytest.approx((width / 2, height / 2), abs=1)
    assert min(width, height) - 6 <= max(wide, tall) <= min(width, height)


@pytest.mark.parametrize(
    ("original", "view", "target", "expected"),
    [
        ((1536, 1024), PLAIN, (1024, 1024), (1024, 1536, 0, 256, 1024, 1024)),
        ((3072, 2048), PLAIN, (1024, 1024), (2048, 3072, 0, 256, 1024, 1024)),
        ((768, 512), PLAIN, (1024, 1024), (512, 768, 0, 256, 1024, 1024)),
        ((1536, 1024), View(left=0.0, top=0.0), (1024, 1024), (1024, 1536, 0, 0, 1024, 1024)),
        ((1536, 1024), View(left=0.0, top=0.0, flipped=True), (1024, 1024), (1024, 1536, 0, 512, 1024, 1024)),
        ((1000, 2000), PLAIN, (768, 1344), (2000, 1000, 960, 0, 768, 1344)),
    ],
)
def test_time_ids_are_those_of_sdxls_training(
    original: tuple[int, int], view: View, target: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """The shorter side is scaled to the target, the image mirrored, and then cut at (top, left)."""
    box = crop_box(*original, *target, view)
    assert time_ids(original, box, target, view.flipped) == pytest.approx(expected, abs=1)


def test_every_variant_is_a_sample_of_its_own_and_no_image_is_decoded_twice(
    make_pile: Callable[..., Pile], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counted(data: bytes, limits: ImageLimits) -> Image.Image:
        decoded.append(sha256(data))
        return decode(data, limits)

    monkeypatch.setattr(image_decoder, "decode", counted)
    variants = ALL.model_copy(update={"count": 4})
    pile = make_pile(variants=variants.model_dump(), shard_samples=10)
    pile.add(*range(7))
    assert pile.encode()["encoded"] == 7
    assert sorted(decoded) == sorted(record.sha256 for record in pile.images.values())
    samples = {sample.key: sample for sample in pile.samples()}
    assert len(samples) == 28
    for record in pile.images.values():
        mine = [samples[key] for key in (record.sha256, *(f"{record.sha256}-{i}" for i in range(1, 4)))]
        assert [sample.meta["variant"] for sample in mine] == [0, 1, 2, 3]
        assert [sample.meta["flipped"] for sample in mine] == [False, True, False, True]
        assert len({sample.moments.tobytes() for sample in mine}) == 4
        assert len({sample.text.tobytes() for sample in mine}) == 1
        assert all(sample.meta["sha256"] == record.sha256 for sample in mine)
        assert mine[0].meta["crop"] == [4, 0, 16, 16]


def test_one_more_variant_encodes_that_alone(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile(variants={"count": 2, "crop": 0.5})
    pile.add(*range(5))
    pile.run()
    before = {sample.key: sample.moments.tobytes() for sample in pile.samples()}
    pile.configure(variants={"count": 3, "crop": 0.5})
    assert pile.encode()["encoded"] == 5
    after = {sample.key: sample.moments.tobytes() for sample in pile.samples()}
    assert len(after) == 15
    assert before.items() < after.items()
    pile.configure(variants={"count": 1, "crop": 0.5})
    assert pile.encode()["encoded"] == 0
    assert {sample.meta["variant"] for sample in pile.samples()} == {0}


def test_captions_take_turns_with_the_variants(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile(variants={"count": 2, "flip": True})
    pile.add(0, 1)
    pile.recaption(0, "a", "b", "c")
    pile.run()
    image = pile.images["0.png"].sha256
    samples = {s.key: (s.meta["caption"], s.meta["variant"]) for s in pile.samples() if s.meta["sha256"] == image}
    assert samples == {image: ("a", 0), f"{image}-1": ("b", 1), f"{image}-2": ("c", 0)}
    moments = {s.key: s.moments.tobytes() for s in pile.samples()}
    assert moments[image] == moments[f"{image}-2"] != moments[f"{image}-1"]


def test_images_are_cut_to_the_bucket_that_suits_them(make_pile: Callable[..., Pile]) -> None:
    pile = make_pile(resolution=32, buckets="aspect", bucket_step=8, max_aspect=2.0)
    pile.add(0, 1, size=(60, 60))
    pile.add(2, 3, 4, size=(80, 40))
    pile.add(5, size=(40, 80))
    _, dataset = pile.run()
    assert [shard.bucket for shard in dataset.shards] == [(24, 40), (32, 32), (40, 24)]
    for sample in pile.samples():
        height, width = sample.meta["bucket"]
        assert sample.moments.shape == (8, height // 2, width // 2)
        assert sample.meta["time_ids"][4:] == [height, width]
