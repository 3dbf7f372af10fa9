"""Shards: an ordinary WebDataset, the same bytes each time, and no damage that goes unnoticed."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from components.dataset.format import (
    Added,
    Sample,
    find_whole,
    index_key,
    npy,
    pack,
    read_index,
    sample_id,
    sample_ids,
    sample_key,
    shard_name,
    tar_key,
)
from components.dataset.reader import ShardReader
from components.dataset.tars import OpenTar, open_ranged, open_whole
from components.digests import sha256
from components.errors import DataError, NotFound
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage

NAME = "shards/16x24/0123456789abcdef"
HOSTILE = 'a "digit"\n<script>alert(1)</script> \udcff 🎉 \x00'


def make_sample(number: int, caption: str = "a digit") -> Sample:
    numbers = np.random.default_rng(number)
    key = sha256(str(number).encode())
    meta = {
        "sha256": key,
        "caption": caption,
        "caption_by": "sidecar:a b.txt",
        "caption_digest": sample_id(key, caption).caption,
        "license": None,
        "source": None,
        "original_size": [30, 20],
        "crop": [0, 0, 30, 20],
        "bucket": [16, 24],
    }
    moments = numbers.normal(size=(8, 2, 3)).astype(np.float16)
    return Sample(key, moments, numbers.normal(size=(5, 6)).astype(np.float16), meta)


@pytest.fixture
def samples() -> list[Sample]:
    return [make_sample(0), make_sample(1, HOSTILE), make_sample(2)]


@pytest.fixture
def storage(tmp_path: Path, samples: list[Sample]) -> Storage:
    storage = open_storage(str(tmp_path))
    tar, index = pack(samples)
    storage.write(tar_key(NAME), tar)
    storage.write(index_key(NAME), index)
    return storage


def test_an_entry_without_a_variant_is_of_the_plain_view(storage: Storage, samples: list[Sample]) -> None:
    value = json.loads(storage.read(index_key(NAME)))
    for number, entry in enumerate(value["samples"]):
        entry["variant"] = number
    storage.write_json(index_key(NAME), value)
    assert [entry.variant for entry in read_index(storage, NAME).samples] == [*range(len(samples))]
    for entry in value["samples"]:
        del entry["variant"]
    storage.write_json(index_key(NAME), value)
    assert [entry.variant for entry in read_index(storage, NAME).samples] == [0] * len(samples)


def test_conditioning_of_sdxl_reads_back(tmp_path: Path) -> None:
    added = Added(np.arange(4, dtype=np.float16), np.arange(6, dtype=np.int32))
    sample = replace(make_sample(0), added=added)
    storage = open_storage(str(tmp_path))
    tar, index = pack([sample])
    storage.write(tar_key(NAME), tar)
    storage.write(index_key(NAME), index)
    read = ShardReader(storage, NAME, sha256(tar)).sample(0)
    assert read.added is not None
    np.testing.assert_array_equal(read.added.pooled, added.pooled)
    np.testing.assert_array_equal(read.added.time_ids, added.time_ids)


def test_an_index_of_another_format_is_refused(storage: Storage) -> None:
    value = json.loads(storage.read(index_key(NAME)))
    storage.write_json(index_key(NAME), {**value, "format": value["format"] + 1})
    with pytest.raises(DataError, match=r"format 2, expected 1"):
        read_index(storage, NAME)
    assert find_whole(storage, NAME) is None


def assert_equal(actual: Sample, expected: Sample) -> None:
    assert actual.key == expected.key
    np.testing.assert_array_equal(actual.moments, expected.moments)
    np.testing.assert_array_equal(actual.text, expected.text)
    assert actual.moments.dtype == actual.text.dtype == np.float16
    assert actual.meta == expected.meta


def test_reader_returns_what_was_packed(storage: Storage, samples: list[Sample]) -> None:
    reader = ShardReader(storage, NAME, sha256(storage.read(tar_key(NAME))))
    assert len(reader) == 3
    for i in (2, 0, 1, 2):
        assert_equal(reader.sample(i), samples[i])


@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
@pytest.mark.parametrize("kind", ["a folder", "a store"])
def test_a_tar_of_another_size_is_rejected_when_it_is_opened(storage: Storage, kind: str, open_tar: OpenTar) -> None:
    tar = storage.read(tar_key(NAME))
    place = storage if kind == "a folder" else MemoryStorage("another-size")
    place.write(tar_key(NAME), tar)
    with pytest.raises(DataError, match=rf"{NAME}.*{len(tar)}"):
        open_tar(place, tar_key(NAME), len(tar) - 512, sha256(tar[:-512]), False)


@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
def test_copies_are_what_was_packed(storage: Storage, samples: list[Sample], open_tar: OpenTar) -> None:
    reader = ShardReader(storage, NAME, open_tar=open_tar)
    moments, text = np.empty((4, 8 * 2 * 3), np.float16), np.empty((4, 5 * 6), np.float16)
    reader.copy([2, 0, 2, 1], moments, text)
    assert (reader.moments_shape, reader.text_shape) == ((8, 2, 3), (5, 6))
    for row, number in enumerate([2, 0, 2, 1]):
        np.testing.assert_array_equal(moments[row].reshape(8, 2, 3), samples[number].moments)
        np.testing.assert_array_equal(text[row].reshape(5, 6), samples[number].text)
        assert_equal(reader.sample(number), samples[number])


def test_ranges_are_all_that_is_read_where_asked(storage: Storage) -> None:
    class Counting(MemoryStorage):
        read_bytes = 0

        def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            data = super().read(key, start, length)
            if key.endswith(".tar"):
                self.read_bytes += len(data)
            return data

    counting = Counting("ranges")
    for key in (tar_key(NAME), index_key(NAME)):
        counting.write(key, storage.read(key))
    reader = ShardReader(counting, NAME, open_tar=open_ranged)
    counting.read_bytes = 0
    reader.copy([1], np.empty((1, 48), np.float16), np.empty((1, 30), np.float16))
    assert counting.read_bytes == 512 + (128 + 96) + (512 - 224) + 512 + (128 + 60), "header to end, of one sample"


def test_damage_in_a_part_is_found_when_it_is_read(storage: Storage, samples: list[Sample]) -> None:
    tar = bytearray(storage.read(tar_key(NAME)))
    start, _ = read_index(storage, NAME).samples[1].offsets["text.npy"]
    tar[start - 512] ^= 1  # its header
    storage.write(tar_key(NAME), bytes(tar))
    reader = ShardReader(storage, NAME, open_tar=open_ranged)
    assert_equal(reader.sample(2), samples[2])
    with pytest.raises(DataError, match=rf"{NAME}: sample 1 \({samples[1].key}\) is damaged"):
        reader.copy([0, 1], np.empty((2, 48), np.float16), np.empty((2, 30), np.float16))


def test_digest_is_not_asked_for_where_it_need_not_be(storage: Storage, samples: list[Sample]) -> None:
    tar = bytearray(storage.read(tar_key(NAME)))
    tar[700] ^= 1  # in the first sample's moments
    storage.write(tar_key(NAME), bytes(tar))
    reader = ShardReader(storage, NAME, verify=False)
    assert_equal(reader.sample(1), samples[1])
    assert reader.sample(0).moments.tobytes() != samples[0].moments.tobytes()


def test_samples_of_different_shapes_are_rejected(tmp_path: Path) -> None:
    odd = make_sample(1)
    tar, index = pack([make_sample(0), Sample(odd.key, odd.moments[:4], odd.text, odd.meta)])
    storage = open_storage(str(tmp_path))
    storage.write(tar_key(NAME), tar)
    storage.write(index_key(NAME), index)
    with pytest.raises(DataError, match=rf"{NAME}: sample 1 .*as in the first sample"):
        ShardReader(storage, NAME)


def test_shard_of_nothing_is_rejected(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    tar, index = pack([])
    storage.write(tar_key(NAME), tar)
    storage.write(index_key(NAME), index)
    with pytest.raises(DataError, match=f"{NAME} holds no sample"):
        ShardReader(storage, NAME)


def test_same_samples_give_same_bytes(samples: list[Sample]) -> None:
    tar, index = pack(samples)
    # Equal numbers in another memory layout, and a dictionary filled in another order, are the same sample.
    again = [
        Sample(s.key, np.asfortranarray(s.moments), s.text.copy(), dict(reversed(s.meta.items()))) for s in samples
    ]
    assert pack(again) == (tar, index)
    assert pack(samples[::-1])[0] != tar
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in opened} == {(0, 0, 0, 0o644, "")}


# webdataset leaves the tar open until the iterator is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_opens_with_plain_webdataset_without_pickle(
    storage: Storage, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset.utils, "enforce_security", True)  # WebDataset's own switch against pickles
    path = storage.local_path(tar_key(NAME))
    samples_read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [one["__key__"] for one in samples_read] == [sample.key for sample in samples]
    for one, sample in zip(samples_read, samples, strict=True):
        assert_equal(Sample(one["__key__"], one["moments.npy"], one["text.npy"], one["json"]), sample)


def test_index_says_where_each_member_lies(storage: Storage) -> None:
    tar = storage.read(tar_key(NAME))
    index = read_index(storage, NAME)
    assert (index.bytes, index.sha256) == (len(tar), sha256(tar))
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = {member.name: (member.offset_data, member.size) for member in opened}
    offsets = {f"{entry.key}.{suffix}": offset for entry in index.samples for suffix, offset in entry.offsets.items()}
    assert offsets == members
    assert list(members)[:3] == [f"{index.samples[0].key}.{suffix}" for suffix in ("moments.npy", "text.npy", "json")]


def test_name_says_what_a_shard_holds_and_in_which_order() -> None:
    samples = [("aa", sample_id("aa", "one")), ("bb", sample_id("bb", "two"))]
    name = shard_name((16, 24), samples)
    assert name.startswith("shards/16x24/")
    assert len(name.rsplit("/", 1)[1]) == 16
    others = [("aa", sample_id("aa", "One")), ("ab", sample_id("ab", "one")), ("aa", sample_id("aa", "one", 1))]
    others += [("aa-1", sample_id("aa", "one"))]
    lists = [samples[::-1], samples[:1], *([other, samples[1]] for other in others)]
    assert name not in {shard_name((16, 24), other) for other in lists}


def test_an_image_gives_as_many_samples_as_it_has_captions_or_variants() -> None:
    a, b, c = (sample_id("aa", caption).caption for caption in "abc")
    assert sample_ids("aa", ["a"], 1) == [("aa", a, 0)]
    assert sample_ids("aa", ["a", "b", "c"], 1) == [("aa", a, 0), ("aa", b, 0), ("aa", c, 0)]
    assert sample_ids("aa", ["a"], 3) == [("aa", a, 0), ("aa", a, 1), ("aa", a, 2)]
    assert sample_ids("aa", ["a", "b"], 3) == [("aa", a, 0), ("aa", b, 1), ("aa", a, 2)]
    assert sample_ids("aa", ["a", "b", "c"], 2) == [("aa", a, 0), ("aa", b, 1), ("aa", c, 0)]
    assert sample_ids("aa", ["a", "a"], 1) == [("aa", a, 0)], "the same words twice are one sample"
    assert [sample_key("aa", number) for number in range(3)] == ["aa", "aa-1", "aa-2"]


def test_captions_with_half_characters_have_a_digest_of_their_own() -> None:
    assert sample_id("aa", "\udcff") != sample_id("aa", "\udcfe")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "empty"])
def test_damaged_tar_is_rejected_by_name(storage: Storage, damage: str) -> None:
    tar = bytearray(storage.read(tar_key(NAME)))
    expected = sha256(bytes(tar))
    match damage:
        case "truncated":
            del tar[-600:]
        case "flipped":
            tar[700] ^= 1
        case "longer":
            tar += bytes(512)
        case "empty":
            tar.clear()
    storage.write(tar_key(NAME), bytes(tar))
    for digest in (expected, None):
        with pytest.raises(DataError, match=NAME):
            ShardReader(storage, NAME, digest)


def test_tar_other_than_the_datasets_is_rejected(storage: Storage) -> None:
    with pytest.raises(DataError, match=NAME):
        ShardReader(storage, NAME, "0" * 64)


@pytest.mark.parametrize("key", [tar_key(NAME), index_key(NAME)])
def test_missing_shard_is_rejected_by_name(storage: Storage, key: str) -> None:
    storage.delete(key)
    with pytest.raises(DataError, match=NAME):
        ShardReader(storage, NAME)


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b"{}", b'{"format":1}', b'{"format":99}', b"\xff", b"null"])
def test_damaged_index_is_rejected_by_name(storage: Storage, index: bytes) -> None:
    storage.write(index_key(NAME), index)
    with pytest.raises(DataError, match=NAME):
        read_index(storage, NAME)
    assert find_whole(storage, NAME) is None


@pytest.mark.parametrize("shift", [(512, 0), (-512, 0), (10**9, 0), (-(10**9), 0), (0, 1), (0, -1)])
def test_index_that_points_elsewhere_is_rejected_with_the_sample(
    storage: Storage, samples: list[Sample], shift: tuple[int, int]
) -> None:
    index = json.loads(storage.read(index_key(NAME)))
    offset = index["samples"][1]["offsets"]["text.npy"]
    offset[:] = [offset[0] + shift[0], offset[1] + shift[1]]
    storage.write_json(index_key(NAME), index)
    for open_tar in (open_whole, open_ranged):
        with pytest.raises(DataError, match=rf"{NAME}: sample 1 \({samples[1].key}\)"):
            ShardReader(storage, NAME, open_tar=open_tar)


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def fortran_array() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asfortranarray(np.zeros((2, 3), np.float16)))
    return stream.getvalue()


def single_precision() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((2, 3), np.float32))
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        pickled_array(),
        fortran_array(),
        single_precision(),
        npy(np.zeros((2, 3), np.float16))[:-1],
        b"",
        b"not an array",
    ],
    ids=["pickle", "fortran", "fp32", "cut-off", "empty", "text"],
)
def test_array_that_is_not_plain_fp16_is_rejected(tmp_path: Path, array: bytes) -> None:
    key = "0" * 64
    buffer = io.BytesIO()
    offsets = {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, data in {"moments.npy": array, "text.npy": array, "json": b"{}"}.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(data)
            offsets[suffix] = [buffer.tell() + 512, len(data)]
            tar.addfile(member, io.BytesIO(data))
    tar_bytes = buffer.getvalue()
    samples = [{"key": key, "caption_digest": "", "offsets": offsets}]
    index = {"format": 1, "bytes": len(tar_bytes), "sha256": sha256(tar_bytes), "samples": samples}
    storage = open_storage(str(tmp_path))
    storage.write(tar_key(NAME), tar_bytes)
    storage.write(index_key(NAME), json.dumps(index).encode())
    with pytest.raises(DataError, match=NAME):
        ShardReader(storage, NAME).sample(0)


def test_whole_shard_is_found_without_reading_its_tar(storage: Storage) -> None:
    assert find_whole(storage, NAME) == read_index(storage, NAME)
    storage.write(tar_key(NAME), storage.read(tar_key(NAME))[:-1])
    assert find_whole(storage, NAME) is None
    storage.delete(tar_key(NAME))
    assert find_whole(storage, NAME) is None


def test_shard_without_index_does_not_exist(storage: Storage) -> None:
    storage.delete(index_key(NAME))
    assert find_whole(storage, NAME) is None
    with pytest.raises(NotFound):
        read_index(storage, NAME)
