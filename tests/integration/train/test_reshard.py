"""A checkpoint of any ZeRO stage and world size loads at any other, element for element."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.model import checkpoints
from tests.processes import Process

pytestmark = pytest.mark.proof
LEGS = [(0, 3), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3), (0, 2), (3, 1), (1, 5)]


def start_rank(workshop: Any, name: str, stage: int, rank: int, world: int, port: str) -> Process:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    script = Path(__file__).with_name("reshard_rank.py")
    command = [sys.executable, str(script), workshop.workdir.url, name, str(stage), "fp32"]
    return Process(command, env=environment, stderr=subprocess.PIPE, text=True)


def reload(workshop: Any, name: str, stage: int, world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as ranks:
        processes = [ranks.enter_context(start_rank(workshop, name, stage, rank, world, port)) for rank in range(world)]
        for process in processes:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said


def test_state_is_equal_after_every_change_of_stage_and_world_size(workshop: Any) -> None:
    name = "reshard"
    workshop.train(name, at_step=4, act=lambda gang: gang.signal(0, signal.SIGTERM))
    run = workshop.run(name)
    first = checkpoints.newest(run)
    assert first is not None
    for stage, world in LEGS:
        reload(workshop, name, stage, world)
    last = checkpoints.newest(run)
    assert last is not None
    assert (last.step, last.counters) == (first.step + len(LEGS), first.counters)
    for step in range(first.step + 1, last.step + 1):
        checkpoint = checkpoints.open_checkpoint(run, step)
        checkpoint.verify()
        for kind in checkpoints.KINDS:
            for parameter, array in first.read_all(kind).items():
                np.testing.assert_array_equal(
                    checkpoint.read_all(kind)[parameter], array, err_msg=f"{kind} {parameter}"
                )
    assert {len(checkpoints.open_checkpoint(run, first.step + 1 + i).parts) for i in range(len(LEGS))} == {1, 2, 3, 5}
