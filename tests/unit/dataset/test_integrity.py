"""Hostile shards: whatever a tar or its index holds, it is read as what was written or rejected by name."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.dataset.format import BLOCK, Added, Sample, index_key, pack, read_index, sample_id, tar_key
from components.dataset.integrity import check_members, check_shard, verify
from components.dataset.reader import ShardReader
from components.dataset.tars import OpenTar, open_ranged, open_whole
from components.dataset.versions import Shard, make_dataset
from components.digests import canonical_json, sha256
from components.errors import DataError
from components.storage.base import Storage
from components.storage.checksums import with_checksum
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage

NAME = "shards/16x24/0123456789abcdef"
Members = list[tuple[tarfile.TarInfo, bytes]]


def make_sample(number: int) -> Sample:
    numbers, key = np.random.default_rng(number), sha256(str(number).encode())
    meta = {"sha256": key, "caption": "a digit", "caption_digest": sample_id(key, "a digit").caption, "variant": 0}
    moments = numbers.normal(size=(8, 2, 3)).astype(np.float16)
    return Sample(key, moments, numbers.normal(size=(5, 6)).astype(np.float16), meta)


TAR, INDEX = pack([make_sample(number) for number in range(3)])


def read_index_of(index: bytes, number: int) -> dict[str, list[int]]:
    """Return where an index has the members of a sample: from which byte, and how many."""
    return dict(json.loads(index)["samples"][number]["offsets"])


def put(storage: Storage, tar: bytes, index: Any = None, name: str = NAME) -> Shard:
    """Write a shard whose index and whose dataset vouch for its tar, whatever that is."""
    value = {**json.loads(INDEX), "bytes": len(tar), "sha256": sha256(tar)} if index is None else index
    storage.write(tar_key(name), tar)
    storage.write(index_key(name), value if isinstance(value, bytes) else canonical_json(with_checksum(value)))
    return Shard(name, (16, 24), 3, len(tar), sha256(tar))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def members(tar: bytes = TAR) -> Members:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return [(member, opened.extractfile(member).read()) for member in opened]  # type: ignore[union-attr]


def repack(tar_members: Members) -> bytes:
    """Return a tar that holds members as they are given, and padding."""
    parts = [
        member.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape") + data + bytes(-len(data) % BLOCK)
        for member, data in tar_members
    ]
    return b"".join(parts) + bytes(2 * BLOCK)


def stranger(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def test_what_was_written_is_whole(storage: Storage) -> None:
    check_shard(storage, put(storage, TAR))
    check_shard(storage, put(storage, repack(members())))


STRANGERS = {
    "an absolute path": stranger("/etc/passwd", b"root"),
    "a way out": stranger("../../outside", b"data"),
    "a symbolic link": stranger("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": stranger("hard", type=tarfile.LNKTYPE, linkname="../outside"),
    "a device": stranger("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a folder": stranger("folder", type=tarfile.DIRTYPE),
    "a pickle": stranger(f"{'f' * 64}.pyd", b"cos\nsystem\n(S'true'\ntR."),
    "a sample again": members()[0],
    "a huge header": stranger("huge", b"x", pax_headers={"comment": "x" * 200_000}),
    "a name that is no text": stranger("\udcff\udcfe", b"x"),
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("at", [0, 4, 9], ids=["first", "between", "last"])
def test_a_stranger_in_the_tar_is_never_touched_and_found(storage: Storage, what: str, at: int, tmp_path: Path) -> None:
    tar_members = members()
    strange = repack([*tar_members[:at], STRANGERS[what], *tar_members[at:]])
    shard = put(storage, strange)
    with pytest.raises(DataError, match=NAME):
        check_shard(storage, shard)
    # Reading goes by the index alone, so that a stranger behind the samples is not even read.
    with suppress(DataError):
        assert [ShardReader(storage, NAME).sample(i).key for i in range(3)] == [make_sample(i).key for i in range(3)]
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert written == {tar_key(NAME), index_key(NAME)}


def test_a_link_instead_of_a_member_is_found(storage: Storage) -> None:
    tar_members = members()
    tar_members[2][0].type, tar_members[2][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DataError, match=f"{NAME}.*{tar_members[2][0].name}"):
        check_shard(storage, put(storage, repack(tar_members)))


def objects(key: str) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([key], dtype=object), allow_pickle=True)
    return stream.getvalue()


def test_an_array_of_objects_is_rejected_without_unpickling(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickle.load", lambda *_: pytest.fail("something was unpickled"))
    tar_members = [
        (member, objects(member.name)) if member.name.endswith("moments.npy") else (member, data)
        for member, data in members()
    ]
    index, at = json.loads(INDEX), 0
    for number, (member, data) in enumerate(tar_members):
        member.size = len(data)
        _, _, suffix = member.name.partition(".")
        index["samples"][number // 3]["offsets"][suffix] = [at + BLOCK, len(data)]
        at += BLOCK + len(data) + -len(data) % BLOCK
    tar = repack(tar_members)
    shard = put(storage, tar, {**index, "bytes": len(tar), "sha256": sha256(tar)})
    for attempt in (lambda: ShardReader(storage, NAME), lambda: check_shard(storage, shard)):
        with pytest.raises(DataError, match=rf"{NAME}: sample 0 .*not an \.npy array"):
            attempt()


def read_all(reader: ShardReader) -> None:
    for i in range(len(reader)):
        reader.sample(i)
        reader.copy([i], np.empty((1, 48), np.float16), np.empty((1, 30), np.float16))


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(INDEX)
    change(value)
    return value


def offset(number: int, suffix: str, start: float, size: float) -> dict[str, Any]:
    return changed(lambda index: index["samples"][number]["offsets"].update({suffix: [start, size]}))


BAD_INDEXES: dict[str, Any] = {
    "a sample twice": changed(lambda index: index["samples"].insert(1, index["samples"][0])),
    "two samples at one offset": changed(
        lambda index: index["samples"][1].update(offsets=index["samples"][0]["offsets"])
    ),
    "negative": offset(1, "json", -512, 20),
    "a negative size": offset(0, "moments.npy", 512, -224),
    "outside": offset(1, "json", len(TAR) - 5, 20),
    "enormous": offset(2, "json", 10**30, 20),
    "an enormous size": offset(0, "text.npy", 1536, 10**15),
    "an infinite size": INDEX.replace(b'"bytes":', b'"bytes":1e999,"was":'),
    "an infinite offset": INDEX.replace(b'"moments.npy":[512,', b'"moments.npy":[Infinity,'),
    "three numbers": changed(lambda index: index["samples"][0]["offsets"]["json"].append(1)),
    "samples that are no list": changed(lambda index: index.update(samples={"0": 1})),
    "a depth without end": b'{"format":1,"samples":' + b"[" * 100_000,
    "text": b'"dataset"',
}


@pytest.mark.parametrize("what", BAD_INDEXES)
@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
def test_a_bad_index_is_rejected_by_name(storage: Storage, what: str, open_tar: OpenTar) -> None:
    shard = put(storage, TAR, BAD_INDEXES[what])
    tracemalloc.start()
    with pytest.raises(DataError, match=NAME):
        read_all(ShardReader(storage, NAME, open_tar=open_tar))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20, "what an index claims is not what is allocated"
    tracemalloc.stop()
    with pytest.raises(DataError, match=NAME):
        check_shard(storage, shard)


@pytest.mark.parametrize("meta", [b"[1]", b"{", b"[" * 100_000, b"\xff"])
def test_bad_json_of_a_sample_is_rejected_by_name(storage: Storage, meta: bytes) -> None:
    tar_members = members()
    start = tar_members[2][0].offset_data
    size = tar_members[2][0].size
    tar = TAR[:start] + meta[:size].ljust(size) + TAR[start + size :]
    put(storage, tar)
    with pytest.raises(DataError, match=rf"{NAME}: sample 0"):
        ShardReader(storage, NAME).sample(0)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("part", ["moments", "text", "pooled"])
def test_values_that_are_not_finite_are_found(storage: Storage, part: str, value: float) -> None:
    samples = []
    for number in range(3):
        added = Added(np.full(4, number, np.float16), np.full(6, number, np.int32))
        samples.append(replace(make_sample(number), added=added))
    assert samples[1].added is not None
    {"moments": samples[1].moments, "text": samples[1].text, "pooled": samples[1].added.pooled}[part].flat[-1] = value
    tar, index = pack(samples)
    with pytest.raises(DataError, match=rf"{NAME}: sample 1 .*not finite"):
        check_shard(storage, put(storage, tar, index))


@pytest.mark.parametrize(
    ("written", "instead"),
    [(b"'<f2'", b"'<i4'"), (b"NUMPY\x01\x00\x76\x00", b"NUMPY\x01\x00\x77\x00"), (b"False", b"True ")],
    ids=["numbers of another kind", "a header of another length", "columns first"],
)
def test_arrays_that_numpy_would_read_otherwise_are_refused(storage: Storage, written: bytes, instead: bytes) -> None:
    assert TAR.count(written) == 6
    put(storage, TAR.replace(written, instead))
    with pytest.raises(DataError, match=r"sample 0 .* is damaged"):
        ShardReader(storage, NAME)


def test_a_place_of_negative_size_is_refused_when_the_shard_is_opened(storage: Storage) -> None:
    value = json.loads(INDEX)
    value["samples"][2]["offsets"]["json"][1] = -1
    put(storage, TAR, value)
    with pytest.raises(DataError, match=r"sample 2 .* is damaged"):
        ShardReader(storage, NAME)


@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
@pytest.mark.parametrize("at", [100, 124, 136], ids=["mode", "size", "time"])
def test_a_header_that_differs_from_the_first_samples_is_refused(storage: Storage, at: int, open_tar: OpenTar) -> None:
    start = read_index_of(INDEX, 2)["text.npy"][0] - BLOCK
    tar = bytearray(TAR)
    tar[start + at] ^= 1
    put(storage, bytes(tar))
    with pytest.raises(DataError, match=r"sample 2 .* is damaged"):
        ShardReader(storage, NAME, open_tar=open_tar).sample(2)


@pytest.mark.parametrize("open_tar", [open_whole, open_ranged])
def test_a_tar_that_ends_within_its_last_arrays_is_refused(storage: Storage, open_tar: OpenTar) -> None:
    start, size = read_index_of(INDEX, 2)["text.npy"]
    cut = TAR[: start + size - 2]
    value = {**json.loads(INDEX), "bytes": len(cut), "sha256": sha256(cut)}
    value["samples"][2]["offsets"]["json"] = value["samples"][1]["offsets"]["json"]  # which is still there
    put(storage, cut, value)
    with pytest.raises(DataError, match=r"sample 2 .* is damaged"):
        ShardReader(storage, NAME, open_tar=open_tar).sample(2)


def test_what_the_dataset_says_otherwise_is_found(storage: Storage) -> None:
    shard = put(storage, TAR)
    for other in (
        replace(shard, samples=4),
        replace(shard, sha256="0" * 64),
        replace(shard, bytes=7),
        replace(shard, tombstones=(3,)),
        replace(shard, held_out=(-1,)),
    ):
        with pytest.raises(DataError, match=NAME):
            check_shard(storage, other)


def test_what_is_no_member_is_named_with_its_place(storage: Storage) -> None:
    put(storage, TAR)
    index = read_index(storage, NAME)
    first = sorted(index.samples[0].offsets.values())[0]
    broken = TAR[: first[0] - BLOCK] + b"\xff" * BLOCK + TAR[first[0] :]
    with pytest.raises(DataError, match=rf"{NAME}: there is no member at byte {first[0] - BLOCK} "):
        check_members(NAME, memoryview(broken), index)


def test_a_sample_that_names_no_variant_is_of_the_plain_view(storage: Storage) -> None:
    sample = make_sample(0)
    del sample.meta["variant"]
    tar, index = pack([sample])
    check_shard(storage, replace(put(storage, tar, index), samples=1))


def test_an_array_may_have_one_row(storage: Storage) -> None:
    sample = replace(make_sample(0), moments=np.ones((8, 1, 1), np.float16))
    tar, index = pack([sample])
    put(storage, tar, index)
    reader = ShardReader(storage, NAME)
    moments, text = np.empty((1, 8), np.float16), np.empty((1, 5 * 6), np.float16)
    reader.copy([0], moments, text)
    assert moments.tolist() == [[1.0] * 8]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_broken_shard_of_a_dataset_is_named_once(storage: Storage, workers: int) -> None:
    shards = [put(storage, TAR, name=f"shards/16x24/{number:016x}") for number in range(20)]
    for number in (0, 7, 19):
        storage.write(tar_key(shards[number].name), TAR[:-1] + b"x")
    storage.delete(tar_key(shards[8].name))
    verdicts = list(verify(storage, make_dataset("k", {}, shards, rejected=0), workers))
    assert [verdict.shard for verdict in verdicts] == shards
    assert [number for number, verdict in enumerate(verdicts) if verdict.problem] == [0, 7, 8, 19]
    assert all(verdict.shard.name in verdict.problem for verdict in verdicts if verdict.problem)


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=8), st.integers(0, 8)), max_size=4)


def spoil(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """Replace some bytes, at places given as shares of the length."""
    for share, new, old in changes:
        at = int(share * len(data))
        data = data[:at] + new + data[at + old :]
    return data


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([512, 0, -1, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Return the way to every value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, item in items for way in [(key,), *((key, *rest) for rest in paths(item))]]


@settings(max_examples=200, deadline=None)
@given(way=st.sampled_from(paths(json.loads(INDEX))), value=values, whole=st.booleans())
def test_whatever_an_index_says_it_is_followed_or_rejected(way: tuple[Any, ...], value: Any, whole: bool) -> None:
    index = json.loads(INDEX)
    holder = index
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    storage = MemoryStorage("fuzz")
    storage.write(tar_key(NAME), TAR)
    with suppress(ValueError):  # JSON has no NaN
        index = with_checksum(index)  # whoever wrote it vouches for it
    storage.write(index_key(NAME), json.dumps(index).encode())
    shard = Shard(NAME, (16, 24), 3, len(TAR), sha256(TAR))
    with suppress(DataError):
        reader = ShardReader(storage, NAME, shard.sha256, open_tar=open_whole if whole else open_ranged)
        for i in range(len(reader)):
            np.testing.assert_array_equal(reader.sample(i).text, make_sample(i).text)
    with suppress(DataError):
        check_shard(storage, shard)
        index = read_index(storage, NAME)
        storage.write(index_key(NAME), INDEX)
        assert index == read_index(storage, NAME), "it reads as the index that was written"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(of_tar=edits, of_index=edits, whole=st.booleans())
def test_whatever_stands_there_it_is_read_or_rejected(
    of_tar: list[tuple[float, bytes, int]], of_index: list[tuple[float, bytes, int]], whole: bool
) -> None:
    storage = MemoryStorage("fuzz")
    storage.write(tar_key(NAME), spoil(TAR, of_tar))
    storage.write(index_key(NAME), spoil(INDEX, of_index))
    with suppress(DataError):
        reader = ShardReader(storage, NAME, verify=False, open_tar=open_whole if whole else open_ranged)
        for i in range(len(reader)):
            sample = reader.sample(i)
            assert sample.moments.dtype == sample.text.dtype == np.float16
            assert isinstance(sample.meta, dict)
    shard = Shard(NAME, (16, 24), 3, len(TAR), sha256(TAR))
    if (storage.read(tar_key(NAME)), storage.read(index_key(NAME))) == (TAR, INDEX):
        check_shard(storage, shard)
    else:
        with suppress(DataError):
            check_shard(storage, shard)
            assert storage.read(tar_key(NAME)) == TAR, "another tar has another digest"
