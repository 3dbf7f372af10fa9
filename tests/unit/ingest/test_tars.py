"""Tars as img2dataset writes them are read without unpacking; hostile members are rejected one by one."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.digests import sha256
from components.errors import DataError, ImageRejected, StorageError
from components.image.records import read_images
from components.image.sources import Source, open_source, parse_member
from components.ingest import file_reader, tar_members
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.ingest.tar_members import read_members
from components.progress import Progress
from components.storage.open import open_storage
from tests.images import image_bytes
from tests.stores.memory import MemoryStorage
from tests.tars import Tars, member, tar

GOOD = (member("a.png", image_bytes(1)), member("z.png", image_bytes(2)))


def between(*hostile: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with hostile members between two good images."""
    return tar(GOOD[0], *hostile, GOOD[1], format=format)


@pytest.fixture
def tars(tmp_path: Path) -> Tars:
    return Tars(f"tars-{tmp_path.name}")


def test_images_come_with_the_words_beside_them(tars: Tars) -> None:
    metadata = {"caption": "from json", "url": "https://example.org/1", "LICENSE": "CC-BY-4.0", "key": "000000001"}
    data = image_bytes(1)
    shard = tar(
        member("000000000.jpg", image_bytes(0)),
        member("000000000.json", json.dumps({"caption": "only json", "LICENSE": "?"}).encode()),
        member("000000001.json", json.dumps(metadata).encode()),
        member("000000001.webp", data),
        member("000000001.txt", b"from text\n"),
        member("000000002.png", image_bytes(2)),
    )
    tars.files.write("shards/00000.tar", shard)
    tars.files.write("shards/00000_stats.json", b"{}")
    tars.files.write("shards/00000.parquet", b"PAR1")
    tars.run()
    first, second, third = tars.images()
    assert tars.names() == [f"shards/00000.tar//00000000{i}" + end for i, end in enumerate((".jpg", ".webp", ".png"))]
    assert (second.sha256, second.license, second.source) == (sha256(data), "CC-BY-4.0", "https://example.org/1")
    assert second.caption is not None
    assert (second.caption.text, second.caption.name.partition("@")[0]) == (
        "from text\n",
        "shards/00000.tar//000000001.txt",
    )
    assert first.caption is not None
    assert (first.caption.text, first.license) == ("only json", None)
    assert third.caption is None


def test_a_member_is_read_by_its_range_alone(tars: Tars, tmp_path: Path) -> None:
    data = image_bytes(1, side=200)
    shard = tar(member("a.png", image_bytes(0)), member("b.png", data), member("b.txt", "é".encode("latin-1")))
    (tmp_path / "s.tar").write_bytes(shard)
    for url in (str(tmp_path), "memory://tars-range"):
        open_storage(url).write("s.tar", shard)
        work = MemoryStorage(f"tars-range-{url}")
        result = ingest(IngestConfig(source=url), work, Progress(io.StringIO()))
        image = {one.sha256: one for one in read_images(work, result["source_id"], "g")}[sha256(data)]
        source = open_source(url)
        assert source.read(image.name) == data
        assert source.read(image.name, 10, 5) == data[10:15]
        assert source.read(image.name, len(data) - 1, 5) == data[-1:]
        assert image.caption is not None
        assert image.caption.text is None  # not UTF-8: the caption step says so
        assert source.read(image.caption.name) == "é".encode("latin-1")
        part = parse_member(image.name)
        assert part is not None
        assert shard[part.start :][: part.size] == data
        open_storage(url).write("s.tar", shard[: part.start + 10])
        with pytest.raises(ImageRejected, match="shorter"):
            source.read(image.name)


def test_only_a_tar_that_has_changed_is_read_again(tars: Tars) -> None:
    for number in range(3):
        tars.files.write(f"{number}.tar", tar(*(member(f"{i}.png", image_bytes(10 * number + i)) for i in range(4))))
    first = tars.run()
    assert (first["read"], first["images"], first["new"]) == (3, 12, 12)
    assert {key: tars.run()[key] for key in ("read", "new", "changed", "gone")} == dict.fromkeys(
        ("read", "new", "changed", "gone"), 0
    )
    kept = [member(f"{i}.png", image_bytes(10 + i)) for i in range(3)]
    tars.files.write("1.tar", tar(*kept, member("n.png", image_bytes(99))))
    tars.files.delete("2.tar")
    again = tars.run()
    assert (again["read"], again["images"]) == (1, 8)
    assert (again["new"], again["changed"], again["gone"]) == (1, 0, 5)


def test_members_that_belong_to_another_image_are_not_images(tars: Tars) -> None:
    members = ("0.mask.png", "0.png", "IMG.2020.01.png", "._0.png", "./d/1.png")
    words = member("IMG.2020.01.txt", b"a dotted name")
    tars.files.write("a.tar", tar(*(member(name, image_bytes(i)) for i, name in enumerate(members)), words))
    tars.run()
    assert tars.names() == ["a.tar//0.png", "a.tar//IMG.2020.01.png", "a.tar//d/1.png"]
    caption = tars.images()[1].caption
    assert caption is not None
    assert caption.text == "a dotted name"


def pax(**headers: str) -> dict[str, Any]:
    return {"pax_headers": {name.replace("_", "."): value for name, value in headers.items()}}


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (between(member("/etc/x.png", image_bytes(3))), {"/etc/x.png": "member-name"}),
        (between(member("../x.png", image_bytes(3))), {"../x.png": "member-name"}),
        (between(member("a/../../x.png", image_bytes(3))), {"a/../../x.png": "member-name"}),
        (between(member("l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")), {"l.png": "member-not-a-file"}),
        (between(member("l.png", type=tarfile.LNKTYPE, linkname="a.png")), {"l.png": "member-not-a-file"}),
        (between(member("d.png", type=tarfile.CHRTYPE)), {"d.png": "member-not-a-file"}),
        (between(member("f.png", type=tarfile.FIFOTYPE)), {"f.png": "member-not-a-file"}),
        (between(member("o.png", image_bytes(3), type=b"Q")), {"o.png": "member-not-a-file"}),
        (between(member("a.png", image_bytes(3))), {"a.png": "member-repeated"}),
        (between(member("x.pkl", pickle.dumps(1))), {"x.pkl": "member-pickle"}),
        (between(member("x.png", b"words")), {"x.png": "not-an-image"}),
        (between(member("x.png", b"")), {"x.png": "empty-file"}),
        (between(member("a.json", b"{no")), {"a.json": "metadata-broken"}),
        (between(member("a.json", b"[" * 100_000)), {"a.json": "metadata-broken"}),
        (between(member("x.png", image_bytes(3), **pax(path="../up.png"))), {"../up.png": "member-name"}),
        (between(member("x.png", image_bytes(3), **pax(comment="y" * 70_000))), {"x.png": "member-header"}),
        (between(member("x.png", image_bytes(3), **pax(GNU_sparse_major="1"))), {"x.png": "member-not-a-file"}),
        (
            between(member("x" * 70_000 + ".png", image_bytes(3)), format=tarfile.GNU_FORMAT),
            {"x" * 100: "member-header"},
        ),
        (between(member("s.png", bytes(512), type=tarfile.GNUTYPE_SPARSE)), {"s.png": "member-not-a-file"}),
    ],
)
def test_a_hostile_member_is_rejected_and_the_others_are_kept(tars: Tars, data: bytes, reasons: dict[str, str]) -> None:
    tars.files.write("a.tar", data)
    tars.run()
    assert tars.names() == ["a.tar//a.png", "a.tar//z.png"]
    assert tars.reasons() == {f"a.tar//{name}": reason for name, reason in reasons.items()}
    assert tars.run()["rejected"] == 1


def broken_header() -> bytes:
    data = bytearray(tar(*GOOD))
    data[512 + 1024 : 512 + 1024 + 200] = b"\xff" * 200
    return bytes(data)


def claims(size: int) -> bytes:
    """A tar whose last member claims a given size."""
    info = tarfile.TarInfo("z.png")
    info.size = size
    return tar(GOOD[0])[: 512 + 1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(512)


def negative() -> bytes:
    info = bytearray(tarfile.TarInfo("z.png").tobuf(tarfile.GNU_FORMAT))
    info[124:136] = b"\xff" * 12
    info[148:156] = b"%06o\0 " % (sum(info[:148]) + 8 * 32 + sum(info[156:]))
    return tar(GOOD[0])[: 512 + 1024] + bytes(info)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tar(*GOOD)[: 512 + 1024 + 512 + 100], "archive-truncated"),
        (tar(*GOOD)[: 512 + 1024 + 100], "archive-truncated"),
        (claims(1 << 40), "archive-truncated"),
        (claims(1 << 80), "archive-truncated"),
        (negative(), "archive-corrupt"),
        (broken_header(), "archive-corrupt"),
        (between(member("x.png", **pax(size="-5"))), "archive-corrupt"),
    ],
)
def test_an_archive_that_cannot_be_read_on_keeps_what_came_before(tars: Tars, data: bytes, reason: str) -> None:
    assert len(GOOD[0][1]) in range(513, 1025), "the offsets above count on this"
    tars.files.write("a.tar", data)
    tars.files.write("b.tar", tar(member("b.png", image_bytes(5))))
    tars.run()
    assert tars.names() == ["a.tar//a.png", "b.tar//b.png"]
    assert tars.reasons() == {"a.tar": reason}


def test_a_source_whose_tars_hold_no_images_is_a_clear_error(tars: Tars) -> None:
    tars.files.write("a.tar", tar(member("words.md", b"words")))
    with pytest.raises(DataError, match="archive"):
        tars.run()


def test_a_tar_of_a_billion_tiny_members_is_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MOST_HEADERS", 1000)
    block = tarfile.TarInfo("t").tobuf()
    bytes_read = 0

    def at(start: int, length: int) -> bytes:
        nonlocal bytes_read
        bytes_read += length
        return block[:length] if start % 512 == 0 else b""

    members = read_members(at, 512 * 10**9)
    assert len(list(islice(members, 1000))) == 1000
    with pytest.raises(ImageRejected, match="archive-too-many"):
        next(members)
    assert bytes_read == 512 * 1000


def test_headers_in_front_of_headers_for_ever_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MOST_HEADERS", 1000)
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    block = info.tobuf()
    with pytest.raises(ImageRejected, match="archive-too-many"):
        list(read_members(lambda start, length: block[:length], 512 * 10**9))


def test_no_more_is_read_than_a_piece_whatever_a_header_claims() -> None:
    largest = 0

    def at(start: int, length: int) -> bytes:
        nonlocal largest
        largest = max(largest, length)
        return data[start : start + length]

    data = between(member("x.png", image_bytes(3), **pax(comment="y" * 300_000)))
    members = list(read_members(at, len(data)))
    assert [one.name for one in members if one.rejection is None] == ["a.png", "z.png"]
    assert largest <= tar_members.LONGEST_HEADER


@given(data=st.binary(max_size=3000), at=st.integers(0, 4000))
@settings(max_examples=300, deadline=None)
def test_garbage_is_rejected_or_ignored(data: bytes, at: int) -> None:
    whole = bytearray(tar(*GOOD))
    whole[at : at + len(data)] = data
    members = read_members(lambda start, length: bytes(whole[start : start + length]), len(whole))
    with suppress(ImageRejected):  # and nothing else
        for one in members:
            assert 0 <= one.start <= one.start + one.size <= len(whole)


def test_an_archive_is_read_once_from_front_to_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_reader, "PIECE", 4096)
    (tmp_path / "a.tar").write_bytes(tar(*(member(f"{i}.png", image_bytes(i)) for i in range(20))))
    reads: list[tuple[int, int | None]] = []

    class Watched(Source):
        url = str(tmp_path)

        def list(self) -> Iterator[Any]:
            return open_source(self.url).list()

        def _read(self, name: str, start: int, length: int | None) -> bytes:
            reads.append((start, length))
            return open_source(self.url).read(name, start, length)

    config = IngestConfig(source=str(tmp_path))
    result = ingest(config, MemoryStorage(f"tars-once-{tmp_path}"), Progress(io.StringIO()), Watched())
    assert result["images"] == 20
    assert [start for start, _ in reads] == sorted(start for start, _ in reads)
    assert max(length or 0 for _, length in reads) == 4096


def test_a_run_that_is_killed_reads_only_the_remaining_tars(tars: Tars, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        tars.files.write(f"{number}.tar", tar(*(member(f"{i}.png", image_bytes(10 * number + i)) for i in range(4))))
    monkeypatch.setattr("components.ingest.parallel_reader.JOURNAL_ROWS", 8)
    killed: list[str] = []

    def dies_at(last: str) -> Callable[..., Any]:
        def read_file(source: Source, config: IngestConfig, file: Any) -> Any:
            if file.name == last:
                raise StorageError("connection lost")
            killed.append(file.name)
            return file_reader.read_file(source, config, file)

        return read_file

    config, quiet = IngestConfig(source=tars.url, readers=1), Progress(io.StringIO())
    with pytest.raises(StorageError, match="connection lost"):
        ingest(config, tars.work, quiet, read_file=dies_at("5.tar"))
    result = tars.run()
    assert (result["images"], result["new"]) == (24, 24)
    assert result["read"] < 6
    other = Tars(f"{tars.url}-uninterrupted")
    other.files = tars.files
    other.url = tars.url
    other.run()
    assert {e.key: tars.work.read(e.key) for e in tars.work.list()} == {
        e.key: other.work.read(e.key) for e in other.work.list()
    }


def test_an_archive_is_read_again_when_another_setting_would_find_other_images(tars: Tars) -> None:
    tars.files.write("a.tar", tar(*GOOD, member("b.psd", image_bytes(3)), member("big.png", image_bytes(4, side=64))))
    most = len(image_bytes(4, side=64))
    assert tars.run(limits={"max_bytes": most - 1})["images"] == 2
    assert tars.reasons() == {"a.tar//big.png": "too-large"}
    assert tars.run(limits={"max_bytes": most})["images"] == 3
    assert tars.run(limits={"max_bytes": most}, extensions=[".png", ".psd"])["images"] == 4
    assert tars.run(limits={"max_bytes": most, "min_side": 17}, extensions=[".png", ".psd"])["read"] == 0
