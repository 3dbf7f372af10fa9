"""The program that a decoding process runs, from file to pixels; `components.latents.image_decoder` starts it.

A request on standard input is two lengths, a JSON object and an image file; the answer on standard output is a line of
JSON. The pixels go into memory that both processes have mapped. The process ends when its input does, or when the time
limit for one image is over, so it does not outlive the process that started it.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import IO, Any

import numpy as np

from components.errors import ImageRejected
from components.image.decoding import decode
from components.image.framing import ACCEPTED, PLAIN, View, cut

READY = {"ready": True}
LENGTHS = struct.Struct("<IQ")
OUT_OF_MEMORY = "decoder-memory"


def main() -> None:
    """Answer requests until there are no more.

    The arguments are the shared memory's file descriptor and size, the memory limit in bytes, and the time limit for
    one image in seconds.
    """
    descriptor, size, memory_limit = map(int, sys.argv[1:4])
    seconds = float(sys.argv[4])
    # Ctrl-C reaches the whole process group; the process that started this one decides when to end it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not be read as an answer
    memory = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
    with suppress(BrokenPipeError):  # the process that asked is gone
        _answer(answers, READY)
        while request := _receive(sys.stdin.buffer):
            signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, whatever that is stuck in
            answer = _decode(*request, memory)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _answer(answers, answer)


def _receive(requests: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    lengths = requests.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_size, data_size = LENGTHS.unpack(lengths)
    return json.loads(requests.read(header_size)), requests.read(data_size)


def _answer(answers: IO[bytes], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


def _decode(request: dict[str, Any], data: bytes, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """Decode an image once, and put its views into the memory one after the other."""
    height, width = request["bucket"]
    try:
        image = decode(data, ACCEPTED)
        crops = []
        for number, view in enumerate(request["views"]):
            frame = cut(image, height, width, View(**{**PLAIN._asdict(), **view}))
            first = number * frame.pixels.size
            memory[first : first + frame.pixels.size] = frame.pixels.reshape(-1)
            crops.append(frame.crop)
        return {"original_size": image.size, "crops": crops}
    except ImageRejected as error:
        return {"rejected": [error.reason, error.detail]}
    except MemoryError:
        return {"rejected": [OUT_OF_MEMORY, "decoding it needs more memory than latents.decode.memory_gib"]}


if __name__ == "__main__":
    main()
