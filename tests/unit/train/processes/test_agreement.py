"""Several ranks, as real processes, agree on the step after which they stop."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from components.train.processes.agreement import Agreed
from tests.processes import Process

ROOT = Path(__file__).parents[4]


# Each rank is asked to stop after some step, or never.
REQUESTS: Mapping[str, tuple[int | None, ...]] = {"first": (4, None, None), "two": (None, 5, 4)}

# One rank: 12 steps with a checkpoint every 5. Rank 0's clock says that its first three steps take 4 s each.
RANK = """
    import itertools, json, sys, torch
    from components.train.processes.agreement import Agreement
    from components.processes.stopping import Stopping
    rank, world, meeting, request_step, late_below = json.loads(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    clock = itertools.accumulate([0.0] + [4.0 if rank == 0 else 0.01] * 3 + [0.01] * 20)
    stopping = Stopping(leave=lambda code: None)
    agreement = Agreement(stopping, torch.device("cpu"), late_below, clock=lambda: next(clock))
    for step in range(1, 13):
        if request_step == step:
            stopping.ask("test")
        agreed = agreement.reach(step, float(rank + step), {"step": step}, at_once=step in (5, 10, 12))
        print(json.dumps([step, agreed]), flush=True)
        if any(one.stop for one in agreed):
            break
    torch.distributed.destroy_process_group()
"""


def start(argument: str) -> Process:
    command = [sys.executable, "-c", textwrap.dedent(RANK), argument]
    return Process(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def gang(folder: Path, requests: Sequence[int | None], late_below: float) -> list[dict[int, list[Agreed]]]:
    """Run real processes that talk over gloo and return, per rank, what was agreed after which step."""
    meeting = f"file://{folder}/meeting"
    by_rank = []
    with ExitStack() as stack:
        arguments = [json.dumps([rank, len(requests), meeting, step, late_below]) for rank, step in enumerate(requests)]
        for process in [stack.enter_context(start(one)) for one in arguments]:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            lines = [json.loads(line) for line in output.splitlines()]
            by_rank.append({step: [Agreed(*one) for one in agreed] for step, agreed in lines})
    return by_rank


@pytest.mark.parametrize(
    "requests", [pytest.param(REQUESTS["first"], marks=pytest.mark.proof), REQUESTS["two"]], ids=REQUESTS
)
@pytest.mark.parametrize(("late_below", "stops_after"), [(0.0, 4), (1e9, 5)], ids=["at-once", "late"])
def test_all_ranks_stop_after_the_same_step(
    tmp_path: Path, requests: Sequence[int | None], late_below: float, stops_after: int
) -> None:
    for agreed in gang(tmp_path, requests, late_below):
        assert max(agreed) == stops_after
        steps = [one for after in agreed.values() for one in after]
        assert [one.step for one in steps] == list(range(1, stops_after + 1)), "each once, the last one, too"
        assert [one.loss for one in steps] == [3.0 + 3 * one.step for one in steps], "the sum over the ranks"
        assert [one.stop for one in steps] == [one.step >= 4 for one in steps]
        assert [one.facts for one in steps] == [{"step": one.step} for one in steps]


def test_short_steps_are_read_late_but_for_those_before_a_checkpoint_and_long_ones_at_once(tmp_path: Path) -> None:
    for agreed in gang(tmp_path, (None, None), late_below=1.0):
        read = {step: [one.step for one in after] for step, after in agreed.items()}
        # The ranks' mean is 2 s for the first three steps; the fourth, read at once, says that steps are short now.
        assert read == {
            1: [1], 2: [2], 3: [3], 4: [4], 5: [5], 6: [], 7: [6], 8: [7], 9: [8], 10: [9, 10], 11: [], 12: [11, 12],
        }  # fmt: skip


def test_a_step_that_was_posted_before_the_stop_was_read_is_returned_with_it(tmp_path: Path) -> None:
    for agreed in gang(tmp_path, (6, None), late_below=3.0):
        read = {step: [one.step for one in after] for step, after in agreed.items()}
        # The first step took the ranks 2 s as a mean, and 4 s as a sum: the others are read late.
        assert read == {1: [1], 2: [], 3: [2], 4: [3], 5: [4, 5], 6: [], 7: [6, 7]}
        last = agreed[7]
        assert [one.stop for one in last] == [True, True]
        assert [one.loss for one in last] == [2 * 6 + 1.0, 2 * 7 + 1.0]
        assert [one.facts for one in last] == [{"step": 6}, {"step": 7}]
