"""A tar that was cut, even between two members, is named; what it holds is used; joined tars are read to the last."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from components.errors import ImageRejected
from components.image.records import read_ingest_rejections
from components.ingest import tar_members
from components.ingest.tar_members import read_members
from tests.images import image_bytes
from tests.tars import Tars, member, tar

GOOD = (member("a.png", image_bytes(1)), member("z.png", image_bytes(2)))


@pytest.fixture
def tars(tmp_path: Path) -> Tars:
    return Tars(f"tar-ends-{tmp_path.name}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "archive-truncated"),
        (b"words" * 1000, "archive-corrupt"),
        (b"\x1f\x8b" + bytes(1000), "archive-corrupt"),
        (bytes(10_240), "archive-empty"),
        (tar(member("words.md", b"words")), "archive-empty"),
    ],
    ids=["no bytes", "words", "gzip", "no members", "no images"],
)
def test_a_tar_without_images_is_rejected_by_name(tars: Tars, data: bytes, reason: str) -> None:
    tars.files.write("a.tar", data)
    tars.files.write("b.tar", tar(member("b.png", image_bytes(5))))
    tars.run()
    assert tars.names() == ["b.tar//b.png"]
    assert tars.reasons() == {"a.tar": reason}


def without_mark(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar that is cut behind its last member's data, whose last block may be filled up or not."""
    return tar(*members, format=format).rstrip(b"\0")


def in_blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("whole_blocks", [True, False])
def test_a_tar_cut_between_two_members_is_named_and_its_images_are_kept(
    tars: Tars, format: int, whole_blocks: bool
) -> None:
    data = without_mark(member("d" * 120 + "/a.png", image_bytes(1)), member("z.png", image_bytes(2)), format=format)
    tars.files.write("a.tar", in_blocks(data) if whole_blocks else data)
    tars.run()
    assert [name.rpartition("/")[2] for name in tars.names()] == ["a.png", "z.png"]
    assert tars.reasons() == {"a.tar": "archive-truncated"}
    (rejection,) = read_ingest_rejections(tars.work, tars.result["source_id"])
    assert "without the mark of its end" in rejection.detail
    assert rejection.detail.endswith("its images before that are kept: 2")
    assert tars.run()["rejected"] == 1


def test_a_tar_cut_behind_the_header_of_a_header_is_named(tars: Tars) -> None:
    long = member("d" * 120 + "/z.png", image_bytes(2))
    whole = tar(GOOD[0], long, format=tarfile.GNU_FORMAT)
    tars.files.write("a.tar", whole[: 512 + 1024 + 1024])
    tars.files.write("b.tar", whole[: 512 + 1024 + 1024] + bytes(10_240))
    tars.run()
    assert tars.names() == ["a.tar//a.png"]
    assert tars.reasons() == {
        "a.tar": "archive-truncated",
        "b.tar": "archive-corrupt",
        "b.tar//a.png": "duplicate",
    }


@pytest.mark.parametrize("zeros", [1, 512, 1024, 1536, 10_240])
def test_an_end_mark_of_any_length_is_one(tars: Tars, zeros: int) -> None:
    """Some tools write one block; what is cut within the mark has lost no member."""
    tars.files.write("a.tar", in_blocks(without_mark(*GOOD)) + bytes(zeros))
    tars.run()
    assert tars.names() == ["a.tar//a.png", "a.tar//z.png"]
    assert tars.reasons() == {}


@pytest.mark.parametrize("padding", [512, 1024, 10_240, 100_352])
def test_tars_joined_to_one_file_are_read_to_the_last(tars: Tars, padding: int) -> None:
    first, second = without_mark(GOOD[0]), without_mark(GOOD[1])
    tars.files.write("a.tar", in_blocks(first) + bytes(padding) + in_blocks(second) + bytes(1024))
    tars.run()
    assert tars.names() == ["a.tar//a.png", "a.tar//z.png"]
    assert tars.reasons() == {}


def test_what_follows_the_end_mark_and_is_no_tar_is_named(tars: Tars) -> None:
    tars.files.write("a.tar", tar(*GOOD) + b"signature")
    tars.run()
    assert tars.names() == ["a.tar//a.png", "a.tar//z.png"]
    assert tars.reasons() == {"a.tar": "archive-truncated"}


def test_zeros_without_end_are_not_read_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "LONGEST_PADDING", 1 << 20)
    bytes_read = 0

    def at(start: int, length: int) -> bytes:
        nonlocal bytes_read
        bytes_read += length
        return bytes(length)

    with pytest.raises(ImageRejected, match="archive-corrupt: more than 1 MiB of zeros"):
        list(read_members(at, 1 << 50))
    assert bytes_read <= (1 << 20) + 512


def test_the_label_of_a_volume_is_no_member(tars: Tars) -> None:
    tars.files.write("a.tar", tar(member("photos.png", type=b"V"), *GOOD, member("d.png", b"Ya\0\0", type=b"D")))
    tars.run()
    assert tars.names() == ["a.tar//a.png", "a.tar//z.png"]
    assert tars.reasons() == {}


def test_the_writer_of_webdataset_marks_the_end(tmp_path: Path) -> None:
    """What img2dataset and most datasets of the Hugging Face hub were written with."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "png": image_bytes(1), "txt": "words"})
    data = (tmp_path / "a.tar").read_bytes()
    assert [one.name for one in read_members(lambda at, length: data[at : at + length], len(data))] == [
        "0.png",
        "0.txt",
    ]
