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
from components.latents.config import DecodeConfig
from components.latents.image_decoder import ProcessDecoder, ThreadDecoder, open_decoder

# A faulty decoder: what it does with a file depends on how the file begins.
POISON = """
import os, signal, sys, time
from components.latents import decoder_process
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

decoder_process.decode = decode
decoder_process.main()
"""


def png(width: int = 30, height: int = 20, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def settings(workers: int = 1) -> DecodeConfig:
    return DecodeConfig(workers=workers, seconds=1.0)


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessDecoder]:
    """A process with a faulty decoder."""
    program = tmp_path / "poisoned.py"
    program.write_text(POISON)
    start = subprocess.Popen

    def poison(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert arguments[1:4] == ["-P", "-m", "components.latents.decoder_process"]
        return start([sys.executable, str(program), *arguments[4:]], **options)

    monkeypatch.setattr("components.latents.image_decoder.subprocess.Popen", poison)
    decoder = ProcessDecoder(settings(), 64 * 64 * 3)
    yield decoder
    decoder.close()


def test_processes_give_the_frames_that_threads_give() -> None:
    views = [PLAIN, View(left=0.2, zoom=0.5, flipped=True), View(rotation=10, brightness=1.2)]
    decoder = open_decoder(settings(workers=2), 3 * 16 * 24 * 3)
    assert isinstance(decoder, ProcessDecoder)
    try:
        with ThreadPoolExecutor(4) as threads:
            images = [png(30 + i, 40 - i, seed=i) for i in range(12)]
            frames_of_images = list(threads.map(lambda data: decoder.decode(data, (16, 24), views), images))
    finally:
        decoder.close()
    for data, frames in zip(images, frames_of_images, strict=True):
        for frame, expected in zip(frames, ThreadDecoder().decode(data, (16, 24), views), strict=True):
            np.testing.assert_array_equal(frame.pixels, expected.pixels)
            assert frame[1:] == expected[1:]


@pytest.mark.parametrize("decoder", [ThreadDecoder(), ProcessDecoder(settings(), 64 * 64 * 3)])
def test_what_is_no_image_is_rejected_and_the_next_is_not(decoder: ThreadDecoder | ProcessDecoder) -> None:
    for _ in range(2):
        with pytest.raises(ImageRejected, match="not-an-image: begins with b'no image'"):
            decoder.decode(b"no image", (8, 8), [PLAIN])
        assert decoder.decode(png(), (8, 8), [PLAIN])[0].pixels.shape == (8, 8, 3)
    decoder.close()


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"segfault", "decoder-died", "killed by SIGSEGV, 2 times"),
        (b"exit", "decoder-died", "exit code 3, 2 times"),
        (b"loop", "decoder-stuck", "decode.seconds, 2 times"),
        (b"hog", "decoder-memory", "decode.memory_gib"),
    ],
)
def test_poison_is_rejected_and_the_next_image_is_not(
    poisoned: ProcessDecoder, data: bytes, reason: str, detail: str
) -> None:
    with pytest.raises(ImageRejected, match=detail) as error:
        poisoned.decode(data, (8, 8), [PLAIN])
    assert error.value.reason == reason
    assert len(poisoned.decode(png(), (8, 8), [PLAIN])) == 1


def test_image_whose_process_died_once_is_tried_again(poisoned: ProcessDecoder, tmp_path: Path) -> None:
    data = b"once:%s:" % str(tmp_path / "died").encode() + png()
    expected = ThreadDecoder().decode(png(), (8, 8), [PLAIN])[0]
    np.testing.assert_array_equal(poisoned.decode(data, (8, 8), [PLAIN])[0].pixels, expected.pixels)
    assert (tmp_path / "died").exists()


def test_what_a_library_prints_is_no_answer(poisoned: ProcessDecoder) -> None:
    assert len(poisoned.decode(b"chatter" + png(), (8, 8), [PLAIN])) == 1


def test_process_that_cannot_start_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.latents.image_decoder.sys.executable", "/bin/false")
    decoder = ProcessDecoder(settings(), 64 * 64 * 3)
    with pytest.raises(DarkroomError, match="did not start") as error:
        decoder.decode(png(), (8, 8), [PLAIN])
    assert not isinstance(error.value, ImageRejected)
    decoder.close()


def test_processes_do_not_outlive_a_killed_step() -> None:
    program = """
import os, sys
from components.image.framing import PLAIN
from components.latents.config import DecodeConfig
from components.latents.image_decoder import ProcessDecoder
decoder = ProcessDecoder(DecodeConfig(workers=1), 64 * 64 * 3)
decoder.decode(open(sys.argv[1], "rb").read(), (8, 8), [PLAIN])
process = decoder._idle.get()
print(process._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"orphan-{os.getpid()}.png"
    path.write_bytes(png())
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
