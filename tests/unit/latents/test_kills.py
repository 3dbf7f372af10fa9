"""The latents step in processes that are killed at any moment, or that do the same work at once: the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.digests import sha256

Pile = Any

# Imports everything once, then runs each life of the step in a process of its own.
NURSERY = """
import io, json, os, sys
from components.latents import encoders, group, shard_maker
from components.latents.config import LatentsConfig
from components.progress import Progress
from components.storage.open import open_storage
import diffusers, transformers
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    config, source, captions, key, base, workdir = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            quiet = Progress(io.StringIO())
            names = ("000", source, captions, key, base)
            group.encode(LatentsConfig.parse(config), *names, open_storage(workdir), quiet)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    print(json.dumps(child), flush=True)
"""


class Nursery:
    """Starts lives of the step, and tells how they end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hear()

    def start(self, pile: Pile) -> int:
        """Return the process id of a new life of the step."""
        names = ["0123456789abcdef", pile.caption_set, pile.key, str(pile.base), str(pile.root)]
        request = [pile.config.model_dump(mode="json"), *names]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._hear())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def ended(process: int) -> bool:
    """Tell whether a life is over: gone, or only kept in the table by its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def await_end(process: int, until: float) -> bool:
    while not ended(process) and time.monotonic() < until:
        time.sleep(0.002)
    return ended(process)


def digests(pile: Pile) -> dict[str, str]:
    return {key: sha256(data) for key, data in pile.files().items() if ".part" not in key}


def filled(make_pile: Callable[..., Pile], **settings: Any) -> Pile:
    pile = make_pile(variants={"count": 2, "crop": 0.6, "flip": True}, shard_samples=20, **settings)
    pile.add(*range(80))
    for number in range(3):
        pile.put(f"poison-{number}.png", b"no image %d" % number)
    pile.caption()
    return pile


def kill_often(nursery: Nursery, pile: Pile, enough: int, seed: int) -> dict[str, str]:
    """Kill lives of the step until so many were hit, then let one end; returns what the dataset holds then."""
    began = time.monotonic()
    assert await_end(nursery.start(pile), began + 120)
    whole = time.monotonic() - began
    pile.index()
    expected = digests(pile)
    assert sum(key.endswith(".tar") for key in expected) == 9
    drawn, kills = random.Random(seed), 0
    while kills < enough:
        shutil.rmtree(pile.root)
        pile.caption()
        for _ in range(20):
            life = nursery.start(pile)
            if await_end(life, time.monotonic() + drawn.uniform(0.1, 0.9) * whole):
                break
            os.kill(life, signal.SIGKILL)
            kills += 1
            assert await_end(life, time.monotonic() + 30)
        assert await_end(nursery.start(pile), time.monotonic() + 120)
        pile.index()
        assert digests(pile) == expected
    return expected


@pytest.mark.slow
def test_killed_a_few_times_ends_with_the_same_bytes(nursery: Nursery, make_pile: Callable[..., Pile]) -> None:
    kill_often(nursery, filled(make_pile), enough=3, seed=1)


@pytest.mark.proof
def test_killed_often_among_decoding_processes_ends_with_the_same_bytes(
    nursery: Nursery, make_pile: Callable[..., Pile]
) -> None:
    pile = filled(make_pile, decode={"workers": 2})
    kill_often(nursery, pile, enough=15, seed=2)


@pytest.mark.slow
def test_two_workers_on_one_group_do_not_harm_each_other(nursery: Nursery, make_pile: Callable[..., Pile]) -> None:
    pile = filled(make_pile)
    assert await_end(nursery.start(pile), time.monotonic() + 120)
    pile.index()
    expected = digests(pile)
    shutil.rmtree(pile.root)
    pile.caption()
    lives = [nursery.start(pile) for _ in range(2)]
    assert all(await_end(life, time.monotonic() + 120) for life in lives)
    pile.index()
    assert digests(pile) == expected
    assert len(list(pile.samples())) == 160
