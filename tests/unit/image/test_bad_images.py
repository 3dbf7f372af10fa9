"""Whatever is among the images: the good ones beside it are kept, the bad one is left out, counted and explained.

In a folder, in a tar, and in an S3 store alike.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.errors import StorageError
from components.image.decoding import ImageLimits, decode
from components.image.records import (
    Caption,
    CaptionRecord,
    read_caption_rejections,
    read_captions,
    read_ingest_rejections,
    read_manifest,
)
from components.image.sources import open_source
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.s3 import connect
from tests.images import GOOD, encoded, folder, noise, put


@dataclass(frozen=True)
class Outcome:
    """What ingest and caption made of a source: captions by name, and reasons by name; a tar's members by their own."""

    kept: dict[str, CaptionRecord]
    rejected: dict[str, str]
    read: Callable[[str], bytes]

    def others(self) -> list[str]:
        """The names kept besides the two good images, which must be there."""
        assert set(GOOD) <= set(self.kept)
        return sorted(set(self.kept) - set(GOOD))


def ingest_and_caption(url: str, work: Storage) -> Outcome:
    progress = Progress(io.StringIO())
    listed = ingest(IngestConfig(source=url, lanes=2, max_rejected=None), work, progress)
    dataset = work.child("captions/src/key")
    kept: dict[str, CaptionRecord] = {}
    rejections = read_ingest_rejections(work, listed["source_id"])
    assert listed["rejected"] == len(rejections)
    for group in read_manifest(work, listed["source_id"]).groups:
        result = caption(CaptionConfig(model=()), ImageLimits(), group, listed["source_id"], "src/key", work, progress)
        records, rejected = read_captions(dataset, group), read_caption_rejections(dataset, group)
        assert (result["captioned"] + result["reused"], result["rejected"]) == (len(records), len(rejected))
        kept |= {record.name: record for record in records}
        rejections += rejected
    assert all(rejection.detail for rejection in rejections)
    assert len(kept) + len(rejections) == listed["images"] + listed["rejected"]
    source, names = open_source(url), {plain(name): name for name in kept}
    return Outcome(
        {plain(name): replace(one, captions=plain_captions(one)) for name, one in kept.items()},
        {plain(rejection.name): rejection.reason for rejection in rejections},
        lambda name: source.read(names[name]),
    )


def plain(name: str) -> str:
    """Return the name of a tar's member as it is in the tar."""
    return re.sub(r"photos\.tar//(.*)@[0-9]+\+[0-9]+", r"\1", name, flags=re.DOTALL)


def plain_captions(record: CaptionRecord) -> tuple[Caption, ...]:
    return tuple(replace(caption, by=plain(caption.by)) for caption in record.captions)


def packed(root: Path, folder: Path) -> str:
    """Pack a folder's files into a tar, and return the address of the folder where the tar is."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for path in sorted(root.rglob("*.*")):
            tar.add(path, str(path.relative_to(root)))
    return str(folder)


def sent(root: Path, url: str) -> str:
    """Copy a folder's files to a store."""
    store = open_storage(url)
    for path in root.rglob("*.*"):
        try:
            store.write(str(path.relative_to(root)), path.read_bytes())
        except StorageError as error:
            pytest.skip(f"this store has no such name: {error}")
    return url


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 store in this process."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        connect().create_bucket(Bucket="photos")
        yield "s3://photos"
    server.stop()


Take = Callable[..., Outcome]
# Each client of S3 takes its time: `make proofs` runs these.
S3 = [pytest.param(storage, marks=pytest.mark.proof) for storage in ("s3", "tar-in-s3")]


@pytest.fixture(params=["folder", "tar", "store", *S3])
def take(request: pytest.FixtureRequest, tmp_path: Path) -> Take:
    """Run ingest and caption on what lies in a folder: as it is, packed into a tar, or copied to a store."""

    def move(root: Path, work: Storage) -> Outcome:
        url = packed(root, tmp_path / "tars") if "tar" in request.param else str(root)
        if "s3" in request.param:
            url = sent(Path(url), f"{request.getfixturevalue('s3')}/{tmp_path.name}")
        if request.param == "store":
            url = sent(root, f"memory://bad-input{tmp_path}")
        return ingest_and_caption(url, work)

    return move


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "photos")


@pytest.fixture
def work(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


def bomb(side: int = 60_000) -> bytes:
    """A PNG of 44 bytes or so whose header asks for gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def case_name(value: object) -> str:
    """Name a case by its words alone: bytes make no name."""
    return value if isinstance(value, str) else "-"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.jpg", encoded(noise(3, 640, 480), "JPEG")[:3000], "truncated"),
        ("cut-early.jpg", encoded(noise(3, 640, 480), "JPEG")[:50], "truncated"),
        ("cut.png", encoded(noise(3, 640, 480))[:3000], "truncated"),
        ("nothing.png", b"", "empty-file"),
        ("words.jpg", b"These are just words.", "not-an-image"),
        ("page.jpg", b"<html><script>alert(1)</script></html>", "not-an-image"),
        ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not-an-image"),
        ("dot.png", encoded(Image.new("RGB", (1, 1))), "too-small"),
        ("bomb.png", bomb(), "too-large"),
        ("bomb-below-pillows-limit.png", bomb(9_000), "too-large"),
        ("floats.tif", encoded(Image.new("F", (32, 32)), "TIFF"), "unsupported-pixels"),
    ],
    ids=case_name,
)
def test_a_bad_image_is_rejected(root: Path, work: Storage, take: Take, name: str, data: bytes, reason: str) -> None:
    put(root / name, data)
    outcome = take(root, work)
    assert outcome.others() == []
    assert outcome.rejected == {name: reason}


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(4, 40, 20), "JPEG", exif=exif)


def animated() -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def palette_with_alpha() -> bytes:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    return encoded(image, transparency=bytes([0, 255]))


@pytest.mark.parametrize(
    ("name", "data", "size", "pixel"),
    [
        ("ink.jpg", encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG"), (32, 32), (0, 255, 255)),
        ("deep.png", encoded(Image.fromarray(np.full((32, 32), 30_000, np.uint16))), (32, 32), (117, 117, 117)),
        ("palette.png", palette_with_alpha(), (32, 32), (255, 255, 255)),
        ("turned.jpg", turned(), (20, 40), None),
        ("moving.gif", animated(), (32, 32), (255, 0, 0)),
        ("alpha.png", encoded(Image.new("RGBA", (32, 32), (9, 9, 9, 0))), (32, 32), (255, 255, 255)),
        ("png-in-disguise.jpg", encoded(Image.new("RGB", (32, 32), (1, 2, 3))), (32, 32), (1, 2, 3)),
    ],
    ids=case_name,
)
def test_an_unusual_image_is_kept_as_what_it_shows(
    root: Path,
    work: Storage,
    take: Take,
    name: str,
    data: bytes,
    size: tuple[int, int],
    pixel: tuple[int, int, int] | None,
) -> None:
    put(root / name, data)
    outcome = take(root, work)
    assert outcome.others() == [name]
    assert (outcome.kept[name].width, outcome.kept[name].height) == size
    image = decode(outcome.read(name), ImageLimits())
    assert image.size == size
    if pixel is not None:
        assert np.abs(np.asarray(image, int)[5, 5] - pixel).max() <= 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (None, "caption-missing"),
        (b"", "caption-empty"),
        (b" \n\t ", "caption-empty"),
        ("naïve café".encode("latin-1"), "caption-not-utf8"),
        (b"word " * 20_000, "caption-too-long"),
        (b"x" * (2 << 20), "caption-too-long"),
    ],
    ids=case_name,
)
def test_an_image_with_a_bad_caption_is_rejected(
    root: Path, work: Storage, take: Take, words: bytes | None, reason: str
) -> None:
    put(root / "image.png", encoded(noise(3)), words)
    outcome = take(root, work)
    assert outcome.others() == []
    assert outcome.rejected == {"image.png": reason}


def test_a_caption_of_markup_is_kept_as_words(root: Path, work: Storage, take: Take) -> None:
    put(root / "image.png", encoded(noise(3)), b"<script>alert('x')</script>\n<b>cat</b> & {{dog}} $(rm -rf /)")
    assert take(root, work).kept["image.png"].captions[0].text == (
        "<script>alert('x')</script> <b>cat</b> & {{dog}} $(rm -rf /)"
    )


def test_of_one_image_under_two_names_the_first_is_kept(root: Path, work: Storage, take: Take) -> None:
    for name in ("twin-b.png", "twin-a.png"):
        put(root / name, encoded(noise(3)))
    outcome = take(root, work)
    assert outcome.others() == ["twin-a.png"]
    assert outcome.rejected == {"twin-b.png": "duplicate"}


@pytest.mark.parametrize(
    "name",
    [
        "with space.png",
        'it\'s "quoted".png',
        "two\nlines\r.png",
        "tab\tand bell\a.png",
        "📷 émoji 日本.png",
        "-rf.png",
        "$(reboot);`id`|&.png",
        "<img src=x onerror=alert(1)>.png",
        "back\\slash.png",
        "%2e%2e%2f.png",
        "a..png",
        "CON.png",
        "x" * 250 + ".png",
        os.fsdecode(b"caf\xe9 \xff.png"),
    ],
)
def test_a_name_may_hold_anything(root: Path, work: Storage, take: Take, name: str) -> None:
    try:
        put(root / name, encoded(noise(3)))
    except OSError as error:
        pytest.skip(f"this file system has no such name: {error}")
    outcome = take(root, work)
    assert outcome.others() == [name]
    assert outcome.kept[name].captions[0].by.partition(":")[2] == f"{name.removesuffix('.png')}.txt"
    assert outcome.rejected == {}


def test_a_bad_image_with_a_hostile_name_is_reported(root: Path, work: Storage, take: Take) -> None:
    name = os.fsdecode(b"<b>\n\xff.png")
    put(root / name, b"words")
    assert take(root, work).rejected == {name: "not-an-image"}


@pytest.mark.parametrize("take", ["folder", "tar", "store", "s3", "tar-in-s3"], indirect=True)
def test_all_of_it_at_once(root: Path, work: Storage, take: Take) -> None:
    for name, data in {"a.jpg": b"", "b.jpg": b"words", "c.png": bomb(), "twin.png": encoded(noise(1))}.items():
        put(root / name, data)
    put(root / "silent.png", encoded(noise(6)), None)
    put(root / "odd.png", palette_with_alpha(), b"<b>odd</b>")
    first, second = take(root, work), take(root, work)
    assert (first.kept, first.rejected) == (second.kept, second.rejected)
    assert first.others() == ["odd.png"]
    assert first.rejected == {
        "a.jpg": "empty-file",
        "b.jpg": "not-an-image",
        "c.png": "too-large",
        "twin.png": "duplicate",
        "silent.png": "caption-missing",
    }
