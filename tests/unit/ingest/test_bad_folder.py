"""Whatever a folder leads to - links, pipes, locked files - the good images in it are kept, and nothing hangs."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.errors import DataError, ImageRejected
from components.image.decoding import ImageLimits
from components.image.records import (
    CaptionRecord,
    read_caption_rejections,
    read_captions,
    read_ingest_rejections,
    read_manifest,
)
from components.image.sources import open_source
from components.ingest.__main__ import main
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.images import GOOD, NOBODY, encoded, folder, noise, put


@dataclass(frozen=True)
class Outcome:
    """What ingest and caption made of a folder: captions by name, and reasons by name."""

    kept: dict[str, CaptionRecord]
    rejected: dict[str, str]

    def others(self) -> list[str]:
        """The names kept besides the two good images, which must be there."""
        assert set(GOOD) <= set(self.kept)
        return sorted(set(self.kept) - set(GOOD))


def take(root: Path, work: Storage, **settings: Any) -> Outcome:
    progress = Progress(io.StringIO())
    listed = ingest(IngestConfig(source=str(root), lanes=2, max_rejected=None), work, progress)
    dataset = work.child("captions/src/key")
    kept: dict[str, CaptionRecord] = {}
    rejections = read_ingest_rejections(work, listed["source_id"])
    assert listed["rejected"] == len(rejections)
    for group in read_manifest(work, listed["source_id"]).groups:
        config = CaptionConfig.parse({"model": None, **settings})
        result = caption(config, ImageLimits(), group, listed["source_id"], "src/key", work, progress)
        records, rejected = read_captions(dataset, group), read_caption_rejections(dataset, group)
        assert (result["captioned"] + result["reused"], result["rejected"]) == (len(records), len(rejected))
        kept |= {record.name: record for record in records}
        rejections += rejected
    assert all(rejection.detail for rejection in rejections)
    assert len(kept) + len(rejections) == listed["images"] + listed["rejected"]
    return Outcome(kept, {rejection.name: rejection.reason for rejection in rejections})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "photos")


@pytest.fixture
def work(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


def test_links_are_not_followed_out_of_the_folder(root: Path, work: Storage, tmp_path: Path) -> None:
    put(tmp_path / "private/secret.png", encoded(noise(5)))
    (root / "link.png").symlink_to(tmp_path / "private/secret.png")
    (root / "folder").symlink_to(tmp_path / "private")
    outcome = take(root, work)
    assert outcome.others() == []
    assert outcome.rejected == {"link.png": "symlink-outside", "folder/": "symlink-outside"}


def test_a_caption_is_not_read_from_outside_the_folder(root: Path, work: Storage, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    put(root / "image.png", encoded(noise(3)), None)
    (root / "image.txt").symlink_to(tmp_path / "password")
    outcome = take(root, work)
    assert outcome.rejected == {"image.png": "caption-unreadable"}


def test_links_in_a_circle_or_to_nowhere_are_rejected(root: Path, work: Storage) -> None:
    (root / "a.png").symlink_to("b.png")
    (root / "b.png").symlink_to("a.png")
    (root / "gone.png").symlink_to("nothing-here")
    (root / "up").symlink_to("..")
    (root / "self").symlink_to(".")
    outcome = take(root, work)
    assert outcome.others() == []
    assert outcome.rejected == {**dict.fromkeys(["a.png", "b.png", "gone.png"], "unreadable"), "up/": "symlink-outside"}


@pytest.fixture
def public_root() -> Iterator[Path]:
    """A folder that every user may read, with two good images."""
    root = Path(tempfile.mkdtemp(prefix="darkroom-test-", dir="/tmp"))
    root.chmod(0o755)
    yield folder(root / "photos")
    subprocess.run(["chmod", "-R", "u+rwX", root], check=True)
    shutil.rmtree(root)


@pytest.fixture
def as_nobody(public_root: Path) -> Iterator[Callable[[], None]]:
    """A function that drops the rights of root, to whom no file is unreadable, until the test ends."""
    user = os.geteuid()
    # What is imported late could be unreadable to nobody: have it all in memory first.
    take(public_root, open_storage("memory://bad-input-warm"))

    def drop() -> None:
        if user == 0:
            try:
                os.seteuid(NOBODY)
            except OSError as error:
                pytest.skip(f"root, and cannot become another user ({error}): nothing is unreadable here")

    yield drop
    os.seteuid(user)


def test_what_may_not_be_read_is_rejected(public_root: Path, as_nobody: Callable[[], None]) -> None:
    put(public_root / "locked.png", encoded(noise(3))).chmod(0)
    put(public_root / "closed/image.png", encoded(noise(4)))
    put(public_root / "silent.png", encoded(noise(5))).with_suffix(".txt").chmod(0)
    put(public_root / "closed.txt/image.png", encoded(noise(6)))
    (public_root / "closed").chmod(0)
    (public_root / "closed.txt").chmod(0)
    as_nobody()
    outcome = take(public_root, open_storage("memory://bad-input-locked"))
    assert outcome.others() == []
    assert outcome.rejected == {
        "locked.png": "unreadable",
        "closed/": "unreadable",
        "closed.txt/": "unreadable",
        "silent.png": "caption-unreadable",
    }


def test_a_folder_that_may_not_be_read_is_a_clear_error(public_root: Path, as_nobody: Callable[[], None]) -> None:
    public_root.chmod(0)
    as_nobody()
    with pytest.raises(DataError, match=r"photos.*Permission denied"):
        take(public_root, open_storage("memory://bad-input-closed"))


def test_pipes_sockets_and_devices_do_not_hang(public_root: Path, tmp_path: Path) -> None:
    """In a process of its own, so that a hang is a failure and not the end of all tests."""
    os.mkfifo(public_root / "pipe.jpg")
    os.mkfifo(public_root / "good/first.caption")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(public_root / "socket.jpg"))
    expected = {"pipe.jpg", "socket.jpg", "zero.jpg"}
    try:
        os.mknod(public_root / "zero.jpg", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        expected.discard("zero.jpg")  # only root may make a device
    (public_root / "device.jpg").symlink_to("/dev/zero")
    arguments = [
        sys.executable,
        "-m",
        "components.ingest",
        "--workdir",
        str(tmp_path),
        "--set",
        f"source={public_root}",
        "--set",
        "max_rejected=1",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    rejections = read_ingest_rejections(open_storage(str(tmp_path)), result["source_id"])
    reasons = {rejection.name: rejection.reason for rejection in rejections}
    assert reasons == {**dict.fromkeys(expected, "unreadable"), "device.jpg": "symlink-outside"}
    assert result["images"] == 2


def test_a_pipe_is_not_read_even_by_name(public_root: Path) -> None:
    os.mkfifo(public_root / "pipe.jpg")
    with pytest.raises(ImageRejected, match="a named pipe"):
        open_source(str(public_root)).read("pipe.jpg")


def test_a_file_too_large_to_read_is_not_read(root: Path, work: Storage) -> None:
    with (root / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room, but reading it would
    with put(root / "image.png", encoded(noise(3))).with_suffix(".txt").open("wb") as file:
        file.truncate(1 << 40)
    outcome = take(root, work)
    assert outcome.others() == []
    assert outcome.rejected == {"huge.png": "too-large", "image.png": "caption-too-long"}


@pytest.mark.parametrize(
    ("prepare", "code", "expected"),
    [
        (lambda path: None, 65, ["photos", "does not exist", "ingest.source"]),
        (lambda path: path.write_bytes(b""), 65, ["photos", "is a file", "ingest.source"]),
        (lambda path: path.mkdir(), 65, ["photos", ".jpg", "ingest.extensions"]),
        (lambda path: put(path / "notes.md", b"words", None), 65, [".md 1", "ingest.extensions"]),
        (lambda path: put(path / "a.jpg", b"words"), 65, ["1 × not-an-image", "a.jpg"]),
    ],
)
def test_a_folder_without_images_is_a_clear_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object],
    code: int,
    expected: list[str],
) -> None:
    prepare(tmp_path / "photos")
    assert main(["--workdir", str(tmp_path / "work"), "--set", f"source={tmp_path}/photos"]) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for part in expected:
        assert part in message


def test_a_workdir_that_cannot_be_written_is_a_clear_error(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["--workdir", str(tmp_path / "file/work"), "--set", f"source={root}"]) == 74
    assert "Not a directory" in capsys.readouterr().err
