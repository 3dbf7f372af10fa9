"""Each kind of bad input is rejected by name with a reason, or read as what it is; the good beside it is kept.

The kinds are drawn in ``tests/bad_input.py``; those of tars and of files of rows have tests of their own. All others
lie in one source, so that one run of ingest and caption tells of each; in a folder, in a tar, and in a store alike.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.errors import DataError, StorageError
from components.image.decoding import ImageLimits, decode
from components.image.optional_formats import installed
from components.image.records import (
    Caption,
    CaptionRecord,
    Rejection,
    read_caption_rejections,
    read_captions,
    read_images,
    read_ingest_rejections,
    read_manifest,
)
from components.image.rejections import FIXES, fix
from components.image.sources import open_source
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.s3 import connect
from tests.bad_input import BAD_IMAGES, CAPTIONS, JSON_FILES, METADATA, NAMES, ODD_IMAGES, kinds
from tests.images import GOOD, encoded, folder, noise, put
from tests.stores.memory import MemoryStorage

# Pillow tells of broken EXIF data by a warning, and reads the image.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")


@dataclass(frozen=True)
class Outcome:
    """What ingest and caption made of a source: by name, a tar's members by their own.

    Attributes:
        kept: Captions.
        rejections: Rejections.
        read: Returns the bytes of an image.
    """

    kept: dict[str, CaptionRecord]
    rejections: dict[str, Rejection]
    read: Callable[[str], bytes]

    def check_rejected(self, name: str, reasons: str) -> None:
        """Check that an image was rejected for one of some reasons, with a detail."""
        assert name not in self.kept
        rejection = self.rejections[name]
        assert rejection.reason in reasons.split("|"), rejection
        assert rejection.detail
        assert rejection.reason in FIXES, "what is one to do?"

    def text(self, name: str) -> str:
        assert name not in self.rejections, self.rejections[name]
        return self.kept[name].captions[0].text


def run(url: str, work: Storage) -> Outcome:
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
    assert len(kept) + len(rejections) == listed["images"] + listed["rejected"], "something was lost without a word"
    source, names = open_source(url), {plain(name): name for name in kept}
    return Outcome(
        {plain(name): replace(one, captions=plain_captions(one)) for name, one in kept.items()},
        {plain(rejection.name): rejection for rejection in rejections},
        lambda name: source.read(names[name]),
    )


def plain(name: str) -> str:
    """Return the name of a tar's member as it is in the tar."""
    return re.sub(r"photos\.tar//(.*)@[0-9]+\+[0-9]+", r"\1", name, flags=re.DOTALL)


def plain_captions(record: CaptionRecord) -> tuple[Caption, ...]:
    return tuple(replace(caption, by=plain(caption.by)) for caption in record.captions)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def packed(root: Path, place: Path) -> str:
    """Pack a folder's files into a tar, and return the address of the folder where the tar is."""
    place.mkdir(exist_ok=True)
    with tarfile.open(place / "photos.tar", "w") as tar:
        for path in files(root):
            tar.add(path, str(path.relative_to(root)))
    return str(place)


def sent(root: Path, url: str) -> str:
    """Copy a folder's files to a store, as far as it takes their names."""
    store = open_storage(url)
    for path in files(root):
        name = str(path.relative_to(root))
        try:
            store.write(name, path.read_bytes())
        except StorageError:
            assert not is_ordinary(name), "a store has all other names"
    return url


def is_ordinary(name: str) -> bool:
    """Tell whether a name has neither control characters nor bytes that are not UTF-8."""
    return name.isprintable()


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


def draw(root: Path) -> Path:
    """Write every kind of input but metadata files, with two good images."""
    folder(root)
    for name, (data, _) in BAD_IMAGES.items():
        put(root / "bad" / name, data)
    for name, odd in ODD_IMAGES.items():
        put(root / "odd" / name, odd.data)
    for seed, (kind, (words, _)) in enumerate(CAPTIONS.items(), start=1000):
        put(root / "captions" / f"{kind}.png", encoded(noise(seed)), words)
    for seed, (kind, (data, _)) in enumerate(JSON_FILES.items(), start=2000):
        put(root / "json" / f"{kind}.png", encoded(noise(seed)), None)
        (root / "json" / f"{kind}.json").write_bytes(data)
    for seed, name in enumerate(NAMES, start=3000):
        try:
            put(root / "names" / name, encoded(noise(seed)))
        except OSError:
            assert sys.platform != "linux", "Linux has all of these names"
    put(root / "bad" / os.fsdecode(b"<b>\n\xff.png"), b"words")
    put(root / "twins/b.png", encoded(noise(4000)))
    put(root / "twins/a.png", encoded(noise(4000)))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "photos")


# Each client of S3 takes its time: `make proofs` runs these.
S3 = [pytest.param(storage, marks=pytest.mark.proof) for storage in ("s3", "tar-in-s3")]


@pytest.fixture(scope="module", params=["folder", "tar", "store", *S3])
def outcome(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What became of everything: as it lies in a folder, packed into a tar, or copied to a store."""
    url = packed(root, tmp_path_factory.mktemp("tars")) if "tar" in request.param else str(root)
    if "s3" in request.param:
        url = sent(Path(url), f"{request.getfixturevalue('s3')}/{request.param}")
    if request.param == "store":
        url = sent(root, "memory://bad-input")
    return run(url, MemoryStorage(f"bad-input-work-{request.param}"))


def test_there_are_many_kinds() -> None:
    assert kinds() >= 270


def test_the_good_images_are_kept(outcome: Outcome) -> None:
    for name in GOOD:
        assert outcome.text(name) == "some words"


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_rejected(outcome: Outcome, name: str) -> None:
    outcome.check_rejected(f"bad/{name}", BAD_IMAGES[name][1])


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_unusual_image_is_kept_as_what_it_shows(outcome: Outcome, name: str) -> None:
    odd, record = ODD_IMAGES[name], outcome.kept[f"odd/{name}"]
    assert (record.width, record.height) == odd.size
    image = decode(outcome.read(f"odd/{name}"), ImageLimits())
    assert (image.mode, image.size) == ("RGB", odd.size)
    if odd.pixel is not None:
        assert np.abs(np.asarray(image, int)[5, 5] - odd.pixel).max() <= 2


@pytest.mark.parametrize("kind", CAPTIONS)
def test_a_caption_is_read_right_or_its_image_is_rejected(outcome: Outcome, kind: str) -> None:
    expected, name = CAPTIONS[kind][1], f"captions/{kind}.png"
    if expected.startswith("="):
        assert outcome.text(name) == expected[1:]
    else:
        outcome.check_rejected(name, expected)
        if expected != "caption-missing":
            assert f"{kind}.txt" in outcome.rejections[name].detail


@pytest.mark.parametrize("kind", JSON_FILES)
def test_json_is_read_right_or_rejected(outcome: Outcome, kind: str) -> None:
    expected, image = JSON_FILES[kind][1], f"json/{kind}.png"
    if expected.startswith("="):
        assert outcome.text(image) == expected[1:]
    elif expected == "metadata-broken":
        outcome.check_rejected(f"json/{kind}.json", expected)
        outcome.check_rejected(image, "caption-missing")
    else:
        outcome.check_rejected(image, expected)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_may_hold_anything(outcome: Outcome, name: str, request: pytest.FixtureRequest) -> None:
    if "[s3-" in request.node.name and not is_ordinary(name):
        pytest.skip("S3 has only names in UTF-8, and this server none with control characters")
    name = f"names/{name}"
    assert outcome.text(name) == "some words"
    assert outcome.kept[name].captions[0].by.partition(":")[2] == f"{name.removesuffix('.png')}.txt"


def test_a_bad_image_with_a_hostile_name_is_reported(outcome: Outcome, request: pytest.FixtureRequest) -> None:
    if "[s3]" not in request.node.name:
        outcome.check_rejected(f"bad/{os.fsdecode(bytes([*b'<b>', 10, 255]))}.png", "not-an-image")


def test_of_one_image_under_two_names_the_first_is_kept(outcome: Outcome) -> None:
    assert "twins/a.png" in outcome.kept
    outcome.check_rejected("twins/b.png", "duplicate")


def test_the_same_again_gives_the_same(root: Path) -> None:
    work = MemoryStorage("bad-input-again")
    first, second = run(str(root), work), run(str(root), work)
    assert (first.kept, first.rejections) == (second.kept, second.rejections)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str | None], dict[str, str]]:
    """Captions by image, and reasons by line, of a folder in which each folder has another kind of metadata."""
    root = tmp_path_factory.mktemp("metadata") / "photos"
    put(root / "metadata.jsonl", b"", None)
    for seed, (kind, (ending, data, *_)) in enumerate(METADATA.items(), start=5000):
        put(root / kind / "a.png", encoded(noise(seed)), None)
        put(root / kind / f"metadata.{ending}", data, None)
    work = MemoryStorage("bad-metadata")
    result = ingest(IngestConfig(source=str(root)), work, Progress(io.StringIO()))
    captions = {
        image.name: None if image.caption is None else image.caption.text
        for group in read_manifest(work, result["source_id"]).groups
        for image in read_images(work, result["source_id"], group)
    }
    rejections = read_ingest_rejections(work, result["source_id"])
    assert all(rejection.detail and rejection.reason in FIXES for rejection in rejections)
    return captions, {rejection.name: rejection.reason for rejection in rejections}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_are_read_right_or_rejected(metadata: tuple[dict[str, str | None], dict[str, str]], kind: str) -> None:
    (captions, rejected), (ending, _, reasons, expected) = metadata, METADATA[kind]
    name = f"{kind}/metadata.{ending}"
    assert captions[f"{kind}/a.png"] == expected
    assert {key: reason for key, reason in rejected.items() if key.startswith(name)} == {
        f"{name}:{line}" if line else name: reason for line, reason in reasons.items()
    }


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_pipe_called_an_image(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "a.png")


def links_in_a_circle(path: Path) -> None:
    path.mkdir()
    (path / "a.png").symlink_to("b.png")
    (path / "b.png").symlink_to("a.png")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "does not exist"),
    "a file": (lambda path: path.write_bytes(b""), "is a file"),
    "an image": (lambda path: path.write_bytes(encoded(noise(1))), "is a file"),
    "a pipe": (lambda path: os.mkfifo(path), "expected a folder"),
    "a socket": (a_socket, "expected a folder"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "a link to itself": (a_link_to_itself, "expected a folder"),
    "an empty folder": (lambda path: path.mkdir(), "holds no images"),
    "empty folders": (lambda path: (path / "a/b/c").mkdir(parents=True), "holds no images"),
    "hidden files": (lambda path: put(path / ".a.png", encoded(noise(1)), None), "holds no images"),
    "captions alone": (lambda path: put(path / "a.txt", b"words", None), "holds no images"),
    "other files": (lambda path: put(path / "a.mp4", b"words", None), ".mp4 1"),
    "a pipe called an image": (a_pipe_called_an_image, "a named pipe"),
    "links in a circle": (links_in_a_circle, "2 × unreadable"),
    "a bad image": (lambda path: put(path / "a.jpg", b"words"), "1 × not-an-image"),
    "an empty tar": (lambda path: put(path / "a.tar", b"", None), "1 × archive-truncated"),
    "a tar of words": (lambda path: put(path / "a.tar", b"words" * 200, None), "1 × archive-corrupt"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_without_images_is_a_clear_error(tmp_path: Path, kind: str) -> None:
    prepare, expected = SOURCES[kind]
    prepare(tmp_path / "photos")
    with pytest.raises(DataError) as caught:
        ingest(IngestConfig(source=str(tmp_path / "photos")), MemoryStorage("no-images"), Progress(io.StringIO()))
    assert expected in str(caught.value)
    assert "photos" in str(caught.value)


def test_every_reason_has_a_fix() -> None:
    """Reasons are written where they arise; those of filters have one fix, the others each their own."""
    written = set()
    for path in (Path(__file__).parents[3] / "components").rglob("*.py"):
        written |= set(re.findall(r'(?:ImageRejected|_ProcessDied)\(\s*"([a-z-]+)"', path.read_text("utf-8")))
    assert len(written) > 30
    assert written <= set(FIXES)
    assert "caption.filters" in fix("blurry")


def test_optional_decoders_are_installed_for_these_tests() -> None:
    assert installed() == ("HEIF", "JXL")
