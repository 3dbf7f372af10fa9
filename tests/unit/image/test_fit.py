"""Where an image goes: the bucket, what is cropped away, how far it is enlarged, and which images lose most."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.image.buckets import aspect_buckets, square_bucket
from components.image.fit import FitTally, fit
from components.image.framing import cut

SIDES = st.integers(1, 3000)


def test_what_is_cropped_away_and_enlarged() -> None:
    square = square_bucket(512)
    wide = fit(2048, 1024, square)
    assert (wide.bucket, wide.crop, wide.cropped_away, wide.enlargement) == ((512, 512), (512, 0, 1024, 1024), 0.5, 0.5)
    assert wide.loss == 0.5
    small = fit(256, 256, square)
    assert (small.cropped_away, small.enlargement, small.loss) == (0, 2, 0.75)
    assert fit(512, 512, square).loss == 0


@given(SIDES, SIDES, st.booleans())
def test_it_says_what_framing_does(width: int, height: int, is_square: bool) -> None:
    buckets = square_bucket(64) if is_square else aspect_buckets(64, 8, 2.0)
    one = fit(width, height, buckets)
    assert one.bucket in buckets.shapes
    assert 0 <= one.cropped_away < 1
    assert 0 <= one.loss < 1
    if max(width, height) < 300:
        framed = cut(Image.new("RGB", (width, height)), *one.bucket)
        assert framed.crop == one.crop
        assert framed.pixels.shape == (*one.bucket, 3)


def test_buckets_are_counted_and_the_worst_are_kept() -> None:
    tally = FitTally(aspect_buckets(512, 64, 2.0), limit=3)
    sizes = [(512, 512)] * 3 + [(256, 256), (1024, 512), (2000, 500), (600, 600), (100, 400)]
    for number, (width, height) in enumerate(np.random.default_rng(0).permutation(sizes).tolist()):
        tally.add(width, height, f"{width}x{height}", f"{number:064x}")
    numbers = tally.numbers()
    square = numbers["buckets"][0]
    assert (square["width"], square["height"], square["images"]) == (512, 512, 5)
    assert (square["cropped_away"], square["enlarged"], square["largest_enlargement"]) == (0, 0.2, 2)
    assert sum(row["images"] for row in numbers["buckets"]) == len(sizes)
    assert [one["name"] for one in numbers["worst_fits"]] == ["100x400", "256x256", "2000x500"]
    assert numbers["worst_fits"][2]["cropped_away"] == pytest.approx(0.58, abs=0.01)


@given(st.lists(st.tuples(SIDES, SIDES), max_size=20), st.randoms())
def test_the_order_of_the_images_does_not_matter(sizes: list[tuple[int, int]], chance: object) -> None:
    named = [(*size, f"{number}", f"{number:064x}") for number, size in enumerate(sizes)]
    tallies = [FitTally(square_bucket(256)), FitTally(square_bucket(256))]
    for image in named:
        tallies[0].add(*image)
    chance.shuffle(named)  # type: ignore[attr-defined]
    for image in named:
        tallies[1].add(*image)
    assert tallies[0].worst == tallies[1].worst
    assert {bucket: count.images for bucket, count in tallies[0].counts.items()} == {
        bucket: count.images for bucket, count in tallies[1].counts.items()
    }
