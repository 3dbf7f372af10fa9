"""What a decoding process runs, from file to pixels; `components.latents.decoding` starts it.

A request is two lengths, a JSON object and an image file, on standard input; an answer is a line of JSON, on what was
standard output. The pixels go into memory that both processes have mapped. It ends when its input does, or its time
for one image is up, so it does not outlive the process that started it.
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

    The arguments are the shared memory's file and its size, the bytes of memory and the seconds that may be taken.
    """
    descriptor, size, limit = map(int, sys.argv[1:4])
    seconds = float(sys.argv[4])
    # Ctrl-C reaches the whole process group; when to end is for the other process to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer
    memory = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
    with suppress(BrokenPipeError):  # nobody is left to hear it
        _answer(answers, READY)
        while request := _receive(sys.stdin.buffer):
            signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, whatever that is stuck in
            answer = _decode(*request, memory)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _answer(answers, answer)


def _receive(requests: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    head = requests.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    described, data = LENGTHS.unpack(head)
    return json.loads(requests.read(described)), requests.read(data)


def _answer(answers: IO[bytes], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")


def _decode(request: dict[str, Any], data: bytes, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, Any]:
    """Decode an image once and put each of its views into the memory, one behind the other."""
    height, width = request["bucket"]
    try:
        image = decode(data, ACCEPTED)
        crops = []
        for number, view in enumerate(request["views"]):
            framed = cut(image, height, width, View(**{**PLAIN._asdict(), **view}))
            first = number * framed.pixels.size
            memory[first : first + framed.pixels.size] = framed.pixels.reshape(-1)
            crops.append(framed.crop)
        return {"original_size": image.size, "crops": crops}
    except ImageRejected as refused:
        return {"refused": [refused.reason, refused.detail]}
    except MemoryError:
        return {"refused": [OUT_OF_MEMORY, "it needs more memory than latents.decode_memory_gib"]}


if __name__ == "__main__":
    main()
