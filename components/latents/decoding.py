"""Decoding in processes of their own: Pillow would hold up the encoder, and a bad image may take its process with it.

Image files are anybody's, and decoders have bugs. An image whose process dies of it, or is stuck on it, is tried once
more in a fresh process, and then rejected; the other images go on.
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
from components.latents.config import LatentsConfig
from components.latents.decoder import LENGTHS, READY

_TRIES = 2


class Decoder(Protocol):
    """Something that turns image files into frames; several threads may ask it at once."""

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image file once, and return a frame of the bucket's height and width for each view.

        Raises:
            ImageRejected: Where it cannot be decoded.
        """

    def close(self) -> None:
        """End what was started; nothing may be asked any more."""


def open_decoder(config: LatentsConfig, largest: int) -> Decoder:
    """Return the decoder that the settings ask for.

    Args:
        config: Settings.
        largest: Most bytes that the frames of an image take.
    """
    return DecodingProcesses(config, largest) if config.decode_workers else InThreads()


class InThreads:
    """Decodes in the thread that asks."""

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image, as ``Decoder.decode`` says."""
        image = decode(data, ACCEPTED)
        return [cut(image, *bucket, view) for view in views]

    def close(self) -> None:
        """Nothing was started."""


class DecodingProcesses:
    """Decodes in processes, each of which has one image at a time.

    Args:
        config: How many there are, and how much time and memory they may take.
        largest: Most bytes that the frames of an image take.
    """

    def __init__(self, config: LatentsConfig, largest: int) -> None:
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()
        self._count = config.decode_workers
        self._start = partial(_Process, largest, int(config.decode_memory_gib * 2**30), config.decode_seconds)
        for _ in range(self._count):
            self._idle.put(None)  # started when there is work

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image, as ``Decoder.decode`` says."""
        process = self._idle.get()
        try:
            for _ in range(_TRIES):
                process = process or self._start()
                try:
                    return process.decode(data, bucket, views)
                except _Lost as lost:
                    reason, detail = lost.args
                    process.close()
                    process = None
            raise ImageRejected(reason, f"{detail}, {_TRIES} times")
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        for _ in range(self._count):
            process = self._idle.get()
            if process is not None:
                process.close()


class _Lost(Exception):
    """A decoding process is gone: a reason as ``ImageRejected`` has it, and a detail."""


class _Process:
    """One decoding process, and the memory that it shares with this one.

    Args:
        largest: Most bytes that the frames of an image take.
        memory: Bytes of memory that it may take.
        seconds: Time that it may take for one image.

    Raises:
        DarkroomError: Where it does not start.
    """

    def __init__(self, largest: int, memory: int, seconds: float) -> None:
        # No name in /dev/shm, which is small in a pod, and nothing to clean up if this process is killed.
        descriptor = os.memfd_create("darkroom-frames") if hasattr(os, "memfd_create") else _unnamed_file()
        try:
            os.ftruncate(descriptor, largest)
            self._memory = mmap.mmap(descriptor, largest)
            arguments = map(str, (descriptor, largest, memory, seconds))
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and numbers
                [sys.executable, "-P", "-m", "components.latents.decoder", *arguments],
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
        except _Lost as lost:
            self.close()
            raise DarkroomError(f"a decoding process did not start: {lost.args[1]}; the log may tell more") from None
        assert ready == READY, ready

    def decode(self, data: bytes, bucket: tuple[int, int], views: Sequence[View]) -> list[Frame]:
        """Decode an image.

        Raises:
            ImageRejected: Where it cannot be decoded.
            _Lost: Where the process died of it or took too long.
        """
        described = json.dumps({"bucket": bucket, "views": [view._asdict() for view in views]}).encode()
        try:
            self._requests.write(LENGTHS.pack(len(described), len(data)) + described)
            self._requests.write(data)
            self._requests.flush()
        except BrokenPipeError:
            raise self._lost() from None
        answer = self._receive()
        if "refused" in answer:
            raise ImageRejected(*answer["refused"])
        shape = (len(views), *bucket, 3)
        pixels = np.frombuffer(self._memory, np.uint8, count=prod(shape)).reshape(shape).copy()
        width, height = answer["original_size"]
        return [Frame(one, (width, height), tuple(crop)) for one, crop in zip(pixels, answer["crops"], strict=True)]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):  # what it was still to be told
                pipe.close()
        self._memory.close()

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._lost()
        return dict(json.loads(line))

    def _lost(self) -> _Lost:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return _Lost("decoder-stuck", "decoding it took more than latents.decode_seconds")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return _Lost("decoder-died", f"the process that decoded it {how}")


def _environment() -> dict[str, str]:
    """Return the environment of a decoding process: Darkroom is where it is here, and pictures need no threads."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
