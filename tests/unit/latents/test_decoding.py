"""Decoding processes: the same frames as in a thread, and no image that can stop the others."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.errors import DarkroomError, ImageRejected
from components.image.framing import PLAIN, View
from components.latents.config import LatentsConfig
from components.latents.decoding import DecodingProcesses, InThreads, open_decoder

# A decoder with a hole: what it makes of a file depends on how the file begins.
POISON = """
import os, signal, sys, time
from components.latents import decoder
from components.image import decoding as images

def decode(data, limits):
    if data.startswith(b"segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.startswith(b"exit"):
        os._exit(3)
    if data.startswith(b"loop"):
        while True:
            pass
    if data.startswith(b"hog"):
        return bytearray(2**32)
    if data.startswith(b"chatter"):
        print("a library that talks")
        return images.decode(data.removeprefix(b"chatter"), limits)
    if data.startswith(b"once:"):
        path = data.removeprefix(b"once:").split(b":")[0].decode()
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(1)
        data = data.split(b":", 2)[2]
    return images.decode(data, limits)

decoder.decode = decode
decoder.main()
"""


def picture(width: int = 30, height: int = 20, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def settings(**values: Any) -> LatentsConfig:
    return LatentsConfig(**{"decode_workers": 1, "decode_seconds": 1.0, **values})


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodingProcesses]:
    """A process whose decoder has a hole."""
    program = tmp_path / "poisoned.py"
    program.write_text(POISON)
    start = subprocess.Popen

    def poison(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert arguments[1:4] == ["-P", "-m", "components.latents.decoder"]
        return start([sys.executable, str(program), *arguments[4:]], **options)

    monkeypatch.setattr("components.latents.decoding.subprocess.Popen", poison)
    decoder = DecodingProcesses(settings(), 64 * 64 * 3)
    yield decoder
    decoder.close()


def test_processes_give_the_frames_that_threads_give() -> None:
    views = [PLAIN, View(left=0.2, zoom=0.5, flipped=True), View(rotation=10, brightness=1.2)]
    decoder = open_decoder(settings(decode_workers=2), 3 * 16 * 24 * 3)
    assert isinstance(decoder, DecodingProcesses)
    try:
        with ThreadPoolExecutor(4) as threads:
            pictures = [picture(30 + i, 40 - i, seed=i) for i in range(12)]
            found = list(threads.map(lambda data: decoder.decode(data, (16, 24), views), pictures))
    finally:
        decoder.close()
    for data, frames in zip(pictures, found, strict=True):
        for frame, expected in zip(frames, InThreads().decode(data, (16, 24), views), strict=True):
            np.testing.assert_array_equal(frame.pixels, expected.pixels)
            assert frame[1:] == expected[1:]


@pytest.mark.parametrize("decoder", [InThreads(), DecodingProcesses(settings(), 64 * 64 * 3)])
def test_what_is_no_image_is_refused_and_the_next_is_not(decoder: InThreads | DecodingProcesses) -> None:
    for _ in range(2):
        with pytest.raises(ImageRejected, match="not-an-image: begins with b'no image'"):
            decoder.decode(b"no image", (8, 8), [PLAIN])
        assert decoder.decode(picture(), (8, 8), [PLAIN])[0].pixels.shape == (8, 8, 3)
    decoder.close()


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"segfault", "decoder-died", "killed by SIGSEGV, 2 times"),
        (b"exit", "decoder-died", "exit code 3, 2 times"),
        (b"loop", "decoder-stuck", "decode_seconds, 2 times"),
        (b"hog", "decoder-memory", "decode_memory_gib"),
    ],
)
def test_poison_is_refused_and_the_next_image_is_not(
    poisoned: DecodingProcesses, data: bytes, reason: str, detail: str
) -> None:
    with pytest.raises(ImageRejected, match=detail) as refused:
        poisoned.decode(data, (8, 8), [PLAIN])
    assert refused.value.reason == reason
    assert len(poisoned.decode(picture(), (8, 8), [PLAIN])) == 1


def test_image_whose_process_died_once_is_tried_again(poisoned: DecodingProcesses, tmp_path: Path) -> None:
    data = b"once:%s:" % str(tmp_path / "died").encode() + picture()
    expected = InThreads().decode(picture(), (8, 8), [PLAIN])[0]
    np.testing.assert_array_equal(poisoned.decode(data, (8, 8), [PLAIN])[0].pixels, expected.pixels)
    assert (tmp_path / "died").exists()


def test_what_a_library_prints_is_no_answer(poisoned: DecodingProcesses) -> None:
    assert len(poisoned.decode(b"chatter" + picture(), (8, 8), [PLAIN])) == 1


def test_process_that_cannot_start_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.latents.decoding.sys.executable", "/bin/false")
    decoder = DecodingProcesses(settings(), 64 * 64 * 3)
    with pytest.raises(DarkroomError, match="did not start") as error:
        decoder.decode(picture(), (8, 8), [PLAIN])
    assert not isinstance(error.value, ImageRejected)
    decoder.close()


def test_processes_do_not_outlive_a_killed_step() -> None:
    program = """
import os, sys
from components.image.framing import PLAIN
from components.latents.config import LatentsConfig
from components.latents.decoding import DecodingProcesses
decoder = DecodingProcesses(LatentsConfig(decode_workers=1), 64 * 64 * 3)
decoder.decode(open(sys.argv[1], "rb").read(), (8, 8), [PLAIN])
process = decoder._idle.get()
print(process._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"orphan-{os.getpid()}.png"
    path.write_bytes(picture())
    try:
        ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    finally:
        path.unlink()
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(ended.stdout)}").exists() and _state(int(ended.stdout)) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
