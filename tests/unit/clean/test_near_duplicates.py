"""Near duplicates are found without a miss, whatever the hashes are, and hashes say what images look like."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from components.clean import near_duplicates as module
from components.clean.config import CleanConfig
from components.clean.near_duplicates import Hashes, near_duplicates
from components.image.fingerprints import as_numbers, perceptual_hash

DISTANCES = range(17)  # all that clean.max_distance allows


def one_by_one(hashes: Hashes, distance: int) -> NDArray[np.int64]:
    """Return what is promised, by the plainest way there is."""
    keeper = np.arange(len(hashes))
    kept: list[int] = []
    for i in range(len(hashes)):
        near = [k for k in kept if bin(int(hashes[i]) ^ int(hashes[k])).count("1") <= distance]
        keeper[i] = near[0] if near else i
        kept += [] if near else [i]
    return keeper


def alike(count: int, seed: int, of: int = 3, flips: int = 6) -> Hashes:
    """Return hashes of which about ``of`` at a time lie near one another."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, max(1, count // of), np.uint64)[random.integers(0, max(1, count // of), count)]
    for _ in range(flips):
        hashes = hashes ^ np.where(
            random.random(count) < 0.6, np.uint64(1) << random.integers(0, 64, count, np.uint64), 0
        )
    return hashes.astype(np.uint64)


def greedily(hashes: Hashes, distance: int) -> NDArray[np.int64]:
    """Return what is promised, by comparing each kept hash with all that come after it."""
    keeper = np.full(len(hashes), -1)
    for i in range(len(hashes)):
        if keeper[i] < 0:
            near = np.bitwise_count(hashes[i:] ^ hashes[i]) <= distance
            keeper[i:][near & (keeper[i:] < 0)] = i
    return keeper


def with_copies(count: int, flips: int, seed: int) -> Hashes:
    """Return so many random hashes and then, in the same order, each with exactly ``flips`` of its bits flipped."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, count, np.uint64)
    bits = np.argsort(random.random((count, 64)), axis=1)[:, :flips].astype(np.uint64)
    return np.concatenate([hashes, hashes ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1, initial=0)])


@pytest.fixture(params=["whole", "in parts"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small searches go the way of large ones, too: banded, and a few pairs at a time."""
    if request.param == "in parts":
        for name, value in {"LEAF": 8, "OUTRIGHT": 64, "PAIRS": 50}.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("distance", [0, 1, 2, 3, 5, 7, 11])
def test_what_is_found_is_what_comparing_each_with_all_finds(distance: int) -> None:
    for seed, count in enumerate([0, 1, 2, 9, 200, 700]):
        hashes = alike(count, seed)
        nearest = near_duplicates(hashes, distance)
        assert nearest.keeper.tolist() == one_by_one(hashes, distance).tolist()
        assert (nearest.distance == np.bitwise_count(hashes ^ hashes[nearest.keeper])).all()
        assert nearest.distance.max(initial=0) <= distance


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=120), st.integers(0, 8))
def test_any_hashes_at_all(numbers: list[int], distance: int) -> None:
    hashes = np.array(numbers, np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAF", 4)
        patch.setattr(module, "OUTRIGHT", 16)
        patch.setattr(module, "PAIRS", 20)
        nearest = near_duplicates(hashes, distance)
    assert nearest.keeper.tolist() == one_by_one(hashes, distance).tolist()


# Bands and their radius follow from the number of hashes, so only many of them show whether the radius is large enough:
# of 30,000, bands may differ in a bit from 7 bits on and in two from 14 on, of 100,000 in one from 5 on.


def test_every_distance_that_can_be_set_is_tested_with_many_hashes() -> None:
    assert CleanConfig(max_distance=max(DISTANCES)).max_distance == 16
    with pytest.raises(ValueError, match="less than or equal to 16"):
        CleanConfig(max_distance=max(DISTANCES) + 1)


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_near_duplicate_is_missed_among_many(distance: int) -> None:
    hashes = with_copies(15_000, distance, seed=distance)
    nearest = near_duplicates(hashes, distance).keeper
    assert (nearest != greedily(hashes, distance)).sum() == 0


@pytest.mark.parametrize("distance", [3, 5, 6, 7])
def test_no_near_duplicate_is_missed_among_very_many(distance: int) -> None:
    hashes = with_copies(50_000, distance, seed=distance)
    assert (near_duplicates(hashes, distance).keeper != np.tile(np.arange(50_000), 2)).sum() == 0


def test_many_in_one_place_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS", 50)
    numbers = np.arange(1 << 12, dtype=np.uint64)
    even = np.bitwise_count(numbers) % 2 == 0
    hashes = np.concatenate([numbers[even], numbers[~even]])  # all of the first stay, and lie in few places of a table
    assert (near_duplicates(hashes, 1).keeper != greedily(hashes, 1)).sum() == 0


def test_no_chain_of_small_steps_joins_what_looks_different() -> None:
    chain = np.array([(1 << step) - 1 for step in range(30)], np.uint64)
    nearest = near_duplicates(chain, 4)
    assert nearest.keeper.tolist() == [step // 5 * 5 for step in range(30)]


def test_a_million_of_the_same_are_no_million_times_a_million() -> None:
    nearest = near_duplicates(np.full(1_000_000, 2**64 - 1, np.uint64), 7)
    assert not nearest.keeper.any()
    assert not nearest.distance.any()


def scene(seed: int, side: int = 256) -> Image.Image:
    """Return an image of shapes and shades, unlike those of other seeds."""
    random = np.random.default_rng(seed)
    shades = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    image = shades.resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        left, top = random.integers(0, side * 3 // 4, 2).tolist()
        draw.ellipse((left, top, left + side // 5, top + side // 4), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def apart(one: Image.Image, other: Image.Image) -> int:
    first, second = as_numbers([perceptual_hash(one), perceptual_hash(other)])
    return int(np.bitwise_count(first ^ second))


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize("seed", range(4))
def test_a_image_saved_anew_still_looks_like_itself_and_not_like_another(seed: int) -> None:
    image = scene(seed)
    assert apart(image, recompressed(image)) <= 4
    assert apart(image, image.resize((97, 97), Image.Resampling.LANCZOS)) <= 4
    assert apart(image, ImageEnhance.Brightness(image).enhance(0.8)) <= 4
    assert apart(image, scene(seed + 100)) > 12
    assert apart(image, image.rotate(90)) > 12


def test_a_hash_is_sixteen_hex_digits_and_stays_the_same() -> None:
    assert perceptual_hash(Image.new("RGB", (40, 30), "white")) == "0" * 16
    assert perceptual_hash(Image.new("RGB", (1, 1), "red")) == "0" * 16
    slope = Image.linear_gradient("L")
    assert perceptual_hash(slope) == perceptual_hash(slope.convert("RGB"))
    assert as_numbers(["00000000000000ff", "8000000000000000"]).tolist() == [255, 2**63]
    assert as_numbers([]).tolist() == []
    row, column = np.indices((32, 32))
    pattern = Image.fromarray(((row * row + 3 * column) % 256).astype(np.uint8))
    assert perceptual_hash(pattern) == "791c6592ea354cd3"
