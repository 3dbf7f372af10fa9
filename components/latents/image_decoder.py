"""Decodes images in separate processes: Pillow would slow the encoder down, and a bad image may crash its process.

Image files come from strangers, and decoders have bugs. If a process dies of an image or is stuck on it, the image is
tried once more in a new process and then rejected; the other images go on.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from components.errors import DarkroomError, ImageRejected
from components.image.decoding import decode
from components.image.framing import ACCEPTED, Frame, View, cut
from components.latents.config import DecodeConfig
from components.latents.decoder_process import LENGTHS, READY

_ATTEMPTS = 2


class Decoder(Protocol):
    """Turns image files into frames; several threads may use it at once."""

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image file once, and return a frame of the bucket's height and width for each view.

        Raises:
            ImageRejected: If it cannot be decoded.
        """

    def close(self) -> None:
        """Stop the decoder; it cannot be used any more."""


def open_decoder(config: DecodeConfig, frames_size: int) -> Decoder:
    """Return the decoder that the settings ask for.

    Args:
        config: Settings.
        frames_size: Most bytes that the frames of one image take.
    """
    return ProcessDecoder(config, frames_size) if config.workers else ThreadDecoder()


class ThreadDecoder:
    """Decodes in the calling thread."""

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image, as ``Decoder.decode`` says."""
        image = decode(data, ACCEPTED)
        return [cut(image, *bucket, view) for view in views]

    def close(self) -> None:
        """Do nothing: no process was started."""


class ProcessDecoder:
    """Decodes in several processes, each of which decodes one image at a time.

    Args:
        config: The number of processes, and their limits of time and memory.
        frames_size: Most bytes that the frames of one image take.
    """

    def __init__(self, config: DecodeConfig, frames_size: int) -> None:
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()
        self._count = config.workers
        self._start = partial(_Process, frames_size, int(config.memory_gib * 2**30), config.seconds)
        for _ in range(self._count):
            self._idle.put(None)  # started when there is work

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image, as ``Decoder.decode`` says."""
        process = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                process = process or self._start()
                try:
                    return process.decode(data, bucket, views)
                except _ProcessDied as error:
                    reason, detail = error.args
                    process.close()
                    process = None
            raise ImageRejected(reason, f"{detail}, {_ATTEMPTS} times")
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        for _ in range(self._count):
            process = self._idle.get()
            if process is not None:
                process.close()


class _ProcessDied(Exception):
    """A decoding process has ended: a reason as ``ImageRejected`` has it, and a detail."""


class _Process:
    """One decoding process, and the memory that it shares with this one.

    Args:
        frames_size: Most bytes that the frames of one image take.
        memory_limit: Bytes of memory that the process may take.
        seconds: Time limit for one image.

    Raises:
        DarkroomError: If it does not start.
    """

    def __init__(self, frames_size: int, memory_limit: int, seconds: float) -> None:
        # No name in /dev/shm, which is small in a pod, and nothing to clean up if this process is killed.
        descriptor = os.memfd_create("darkroom-frames") if hasattr(os, "memfd_create") else _unnamed_file()
        try:
            os.ftruncate(descriptor, frames_size)
            self._memory = mmap.mmap(descriptor, frames_size)
            arguments = map(str, (descriptor, frames_size, memory_limit, seconds))
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and numbers
                [sys.executable, "-P", "-m", "components.latents.decoder_process", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[descriptor],
                env=_environment(),
            )
        finally:
            os.close(descriptor)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            ready = self._receive()
        except _ProcessDied as error:
            self.close()
            raise DarkroomError(f"a decoding process did not start: {error.args[1]}; see the log above") from None
        assert ready == READY, ready

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image.

        Raises:
            ImageRejected: If it cannot be decoded.
            _ProcessDied: If the process died of it or took too long.
        """
        header = json.dumps({"bucket": bucket, "views": [view._asdict() for view in views]}).encode()
        try:
            self._requests.write(LENGTHS.pack(len(header), len(data)) + header)
            self._requests.write(data)
            self._requests.flush()
        except BrokenPipeError:
            raise self._died() from None
        answer = self._receive()
        if "rejected" in answer:
            raise ImageRejected(*answer["rejected"])
        shape = (len(views), *bucket, 3)
        pixels = np.frombuffer(self._memory, np.uint8, count=prod(shape)).reshape(shape).copy()
        width, height = answer["original_size"]
        return [Frame(one, (width, height), tuple(crop)) for one, crop in zip(pixels, answer["crops"], strict=True)]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):  # a request that was not sent yet
                pipe.close()
        self._memory.close()

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        return dict(json.loads(line))

    def _died(self) -> _ProcessDied:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return _ProcessDied("decoder-stuck", "decoding it took more than latents.decode.seconds")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return _ProcessDied("decoder-died", f"the process that decoded it {how}")


def _environment() -> dict[str, str]:
    """Return the environment of a decoding process: it imports the same Darkroom, and needs one thread only."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
