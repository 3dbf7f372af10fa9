"""The plan: records and settings decide, and an image's samples stay together."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from components.dataset.format import sample_id
from components.digests import sha256
from components.errors import ConfigError
from components.image.buckets import Buckets
from components.image.records import Caption, CaptionRecord
from components.latents.buckets import make_buckets
from components.latents.config import LatentsConfig
from components.latents.plan import plan

SQUARE = Buckets([(8, 8)])


def record(number: int, *captions: str, size: tuple[int, int] = (8, 8)) -> CaptionRecord:
    written = tuple(Caption(text, "x") for text in captions or ("a",))
    return CaptionRecord(sha256(b"%d" % number), f"{number}.png", 1, written, "v", *size)


def test_plan_depends_on_the_set_of_records_alone() -> None:
    records = [record(i) for i in range(10)]
    encoded = {sample_id(records[i].sha256, "a"): "shards/8x8/old" for i in (2, 5)}
    planned = plan(records, encoded, SQUARE, 1, 3)
    assert plan(records[::-1], encoded, SQUARE, 1, 3) == planned
    assert planned.reused == ("shards/8x8/old",)
    assert [len(shard.images) for shard in planned.new] == [3, 3, 2]
    ordered = [image.record.sha256 for shard in planned.new for image in shard.images]
    assert ordered == sorted(record.sha256 for i, record in enumerate(records) if i not in (2, 5))


def test_samples_of_an_image_are_not_torn_apart() -> None:
    records = [record(0, "a", "b", "c"), record(1), record(2, "a", "b", "c", "d", "e", "f"), record(3, "a", "b")]
    planned = plan(records, {}, SQUARE, 2, 4)
    sizes = [[len(image.samples) for image in shard.images] for shard in planned.new]
    assert sorted(size for shard in sizes for size in shard) == [2, 2, 3, 6]
    assert all(len(shard) == 1 or sum(shard) <= 4 for shard in sizes)
    keys = [sample.key for shard in planned.new for image in shard.images for sample in image.samples]
    assert len(set(keys)) == len(keys) == 13
    assert all(image.variants == (0, 1) for shard in planned.new for image in shard.images)


def test_one_more_variant_or_caption_is_all_that_is_new() -> None:
    few, many = [record(0), record(1, "a", "b")], [record(0), record(1, "a", "b", "c")]
    encoded = {s.id: "old" for n in plan(few, {}, SQUARE, 1, 9).new for image in n.images for s in image.samples}
    (shard,) = plan(many, encoded, SQUARE, 1, 9).new
    assert [(s.key, s.caption.text) for i in shard.images for s in i.samples] == [(f"{many[1].sha256}-2", "c")]
    (shard,) = plan(few, encoded, SQUARE, 2, 9).new
    assert {s.id for i in shard.images for s in i.samples} == {
        sample_id(few[0].sha256, "a", 1),
        sample_id(few[1].sha256, "b", 1),  # no longer beside the plain image
    }


def test_name_is_that_of_the_samples_that_are_left() -> None:
    records = [record(i) for i in range(4)]
    (whole,) = plan(records, {}, SQUARE, 1, 9).new
    (without,) = plan(records[1:], {}, SQUARE, 1, 9).new
    assert whole.without({records[0].sha256}).name == without.name != whole.name


def test_shards_hold_one_bucket_each() -> None:
    records = [record(i, size=(20, 10) if i % 3 else (10, 20)) for i in range(9)]
    planned = plan(records, {}, Buckets([(8, 16), (16, 8)]), 1, 4)
    assert [(shard.bucket, len(shard.images)) for shard in planned.new] == [((8, 16), 4), ((8, 16), 2), ((16, 8), 3)]
    assert [shard.name[:12] for shard in planned.new] == ["shards/8x16/", "shards/8x16/", "shards/16x8/"]


@pytest.mark.parametrize(("side", "step", "most"), [(512, 64, 2.0), (1024, 64, 4.0), (512, 64, 1.0), (32, 8, 2.0)])
def test_buckets_have_one_area_and_their_mirror_images(side: int, step: int, most: float) -> None:
    config = LatentsConfig(resolution=side, buckets="aspect", bucket_step=step, max_aspect=most)
    shapes = make_buckets(config).shapes
    assert (side, side) in shapes
    assert {(width, height) for height, width in shapes} == set(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert max(height, width) <= most * min(height, width)
        assert side * side - step * max(height, width) < height * width <= side * side


def test_buckets_of_sdxl_are_those_of_its_paper() -> None:
    shapes = make_buckets(LatentsConfig(resolution=1024, buckets="aspect", max_aspect=4.0)).shapes
    for shape in [(512, 2048), (576, 1728), (768, 1344), (896, 1152), (1024, 1024), (1344, 768), (2048, 512)]:
        assert shape in shapes


def test_image_goes_where_its_aspect_ratio_is_nearest() -> None:
    buckets = make_buckets(LatentsConfig(resolution=512, buckets="aspect"))
    for height, width in buckets.shapes:
        assert buckets.choose(width, height) == (height, width)
        assert buckets.choose(10 * width, 10 * height) == (height, width)
    assert buckets.choose(10_000, 1) == buckets.shapes[-1]
    assert buckets.choose(1, 10_000) == buckets.shapes[0]
    # Between two neighbours the border is their geometric mean.
    for (h1, w1), (h2, w2) in pairwise(buckets.shapes):
        middle = Fraction(w1, h1) * Fraction(w2, h2)
        for width in range(900, 1100):
            if Fraction(width, 1000) ** 2 < middle and width * h1 >= 1000 * w1:
                assert buckets.choose(width, 1000) == (h1, w1)


def test_steps_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"bucket_step \(64\).*resolution \(32\)"):
        LatentsConfig.parse({"buckets": "aspect"})


def test_variants_that_would_be_the_same_are_rejected() -> None:
    for variants in ({"count": 2}, {"count": 3, "flip": True}):
        with pytest.raises(ConfigError, match="would differ"):
            LatentsConfig.parse({"variants": variants})
    LatentsConfig.parse({"variants": {"count": 2, "flip": True}})
    LatentsConfig.parse({"variants": {"count": 9}, "framing": "random-crop"})
    LatentsConfig.parse({"variants": {"count": 9, "rotation": 3}})
