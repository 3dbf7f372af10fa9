"""Precisions, ZeRO stages and ways to spare memory: other roads to the same weights."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

from components.model import checkpoints

pytestmark = pytest.mark.slow

SHORT = ("steps=12", "checkpoint.every=100", "validation.every=null")


def losses(workshop: Any, name: str, *settings: str) -> Any:
    ended = workshop.train(name, *SHORT, *settings)
    assert ended.code == 0, ended.output
    return np.array(workshop.losses(name))


def newest(workshop: Any, name: str) -> checkpoints.Checkpoint:
    checkpoint = checkpoints.newest(workshop.run(name))
    assert checkpoint is not None
    return checkpoint


def test_whole_copies_train_as_deepspeed_does(workshop: Any) -> None:
    """Stage 0 is our own, stage 1 is DeepSpeed's: both take the same steps, up to the order of sums."""
    whole, sharded = losses(workshop, "whole", "zero_stage=0"), losses(workshop, "sharded", "zero_stage=1")
    np.testing.assert_allclose(whole, sharded, rtol=1e-5)
    weights = [newest(workshop, name).read_all("master") for name in ("whole", "sharded")]
    for name, values in weights[0].items():
        # Adam divides by the root of the second moment, so where that is tiny the last bits are what decides.
        np.testing.assert_allclose(values, weights[1][name], atol=5e-5, err_msg=name)


@pytest.mark.proof
def test_sparing_memory_changes_no_byte(workshop: Any) -> None:
    plain = losses(workshop, "plain", "zero_stage=0")
    again = losses(workshop, "checkpointing", "zero_stage=0", "performance.gradient_checkpointing=true")
    assert workshop.state("checkpointing") == workshop.state("plain")
    assert list(again) == list(plain)


@pytest.mark.proof
def test_channels_last_trains_alike(workshop: Any) -> None:
    np.testing.assert_allclose(
        losses(workshop, "last", "performance.channels_last=true"), losses(workshop, "first"), rtol=1e-4
    )


@pytest.mark.proof
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_fp16_scales_its_losses_and_resumes_with_the_scale(workshop: Any, stage: int) -> None:
    settings = (f"zero_stage={stage}", "precision=fp16")
    name, stopped = f"fp16-{stage}", f"fp16-{stage}-stopped"
    measured = losses(workshop, name, *settings)
    np.testing.assert_allclose(measured, losses(workshop, f"{name}-fp32", f"zero_stage={stage}"), rtol=0.01)
    workshop.train(stopped, *SHORT, *settings, at_step=4, act=lambda gang: gang.signal(0, signal.SIGTERM))
    assert workshop.train(stopped, *SHORT, *settings).events_named("resumed")
    assert workshop.state(stopped) == workshop.state(name)
    last = [newest(workshop, run).counters for run in (name, stopped)]
    assert last[0] == last[1]
    assert last[0]["loss_scale"] >= 2.0
    assert last[0]["updates"] + last[0]["loss_scale_steady"] > 0


@pytest.mark.proof
def test_a_compiled_unet_trains_alike(workshop: Any) -> None:
    """It needs a C++ compiler here, and on a GPU only Triton."""
    compiled = losses(
        workshop,
        "compiled",
        "performance.compile=true",
        "ranks=1",
        "limits.start_seconds=null",
        "limits.hang_seconds=null",
    )
    np.testing.assert_allclose(compiled, losses(workshop, "eager", "ranks=1"), rtol=1e-4)
