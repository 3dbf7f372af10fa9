"""Every engine takes the steps of a plain torch loop: the same gradient, clipped alike, at any number of ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.model import checkpoints
from components.model.checkpoints import KINDS, Save
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.data.batches import micro_batches
from components.train.data.reader import MicroBatch
from components.train.step import fragments, replicated
from components.train.step.engine import Engine, init_distributed, load_weights
from components.train.step.loss_scale import LossScale

State = dict[str, NDArray[np.float32]]  # "<kind>/<parameter>", flat

STEPS = 5
RESUME_AT = 3
POSITIONS = 7  # no number of ranks or micro-batches divides them
# What does not count for an engine that leaves bad shards out: a row of each batch, and a whole batch.
SKIPPED_ROW, SKIPPED_STEP = 1, 4
RATES = (4e-3, 2e-2, 1e-2, 5e-3, 2e-3)
WORLDS = (1, 2)
# Adam's update does not depend on the gradient's scale; with an epsilon of the gradient's own size it does.
SETTINGS: Mapping[str, Any] = {
    "steps": STEPS, "global_batch": POSITIONS, "micro_batch": 2, "ema": {"decay": 0.2},
    "optimizer": {"epsilon": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)},
}  # fmt: skip
KINDS_OF_ENGINE: Mapping[str, Mapping[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "exact": {"zero_stage": 0, "exact_across_world_sizes": True},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default norm": {},
    # Two ranks share seven rows as three and four: one of them runs a micro-batch without a row.
    "small norm": {"optimizer": {**SETTINGS["optimizer"], "max_grad_norm": 0.01}, "micro_batch": 1},
    "bad rows left out": {"data": {"on_bad_shard": "skip"}},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
}
# How far from float32's losses and norms each precision may be; it does not go together with each engine.
ROUNDING = {"fp16": 5e-3, "bf16": 5e-2}
CASES = [
    (kind, variant)
    for kind in KINDS_OF_ENGINE
    for variant in VARIANTS
    if variant not in ROUNDING or kind in ("stage 0", "stage 1")
]
# A scale that doubles after the second step, before training is interrupted, and would overflow nothing.
LOSS_SCALE = LossScale(1024.0, 998)


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        losses: The mean loss of each step's global batch.
        norms: The gradient's norm at each step, before it was clipped.
        state: Weights, moments and moving average.
    """

    losses: list[float]
    norms: list[float]
    state: State


def config_of(kind: str, variant: str) -> TrainConfig:
    return TrainConfig.parse({**SETTINGS, **KINDS_OF_ENGINE[kind], **VARIANTS[variant]})


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3))


def loss_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    predicted: Tensor = model(batch.latents)
    return (predicted - batch.noise).square().mean(1)


def rows(step: int, places: Sequence[int], skips: bool) -> MicroBatch:
    """Return some rows of a step's global batch; without places, one that does not count."""
    generator = torch.Generator().manual_seed(step)
    # Rows of growing size: which of them are added up, and how often, shows in the sum. Not all steps are clipped.
    scale = torch.arange(1.0, 1.0 + POSITIONS)[:, None] * (0.2 + 0.1 * step)
    latents, noise = (torch.randn(POSITIONS, n, generator=generator) * scale for n in (6, 3))
    here = list(places) or [0]
    weights = torch.full([len(here)], float(bool(places)))
    if skips:
        weights[[place == SKIPPED_ROW or step == SKIPPED_STEP for place in here]] = 0.0
    nothing = torch.zeros(len(here), dtype=torch.int64)
    return MicroBatch(latents[here], noise[here], nothing, nothing, weights, ("",) * len(here))


def reference(variant: str) -> Trained:
    """Train as torch's documentation does: one process, whole batches, no engine."""
    config = config_of("stage 0", variant)
    model = make_model()
    adamw = torch.optim.AdamW(
        model.parameters(), betas=config.optimizer.betas, eps=config.optimizer.epsilon, weight_decay=0.1
    )
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses, norms = [], []
    for step, rate in enumerate(RATES):
        for group in adamw.param_groups:
            group["lr"] = rate
        batch = rows(step, range(POSITIONS), skips=config.data.on_bad_shard == "skip")
        loss = (loss_of(model, batch) * batch.weights).sum() / max(1.0, float(batch.weights.sum()))
        adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)))
        adamw.step()
        for name, parameter in model.named_parameters():
            kept = (0.1, 2 / 11, 0.2, 0.2, 0.2)[step]  # min(0.2, (1 + n) / (10 + n)), as tf.train's moving average
            average[name] = kept * average[name] + (1 - kept) * parameter.detach()
        losses.append(loss.item())
    state: State = {}
    for name, parameter in model.named_parameters():
        kinds = {"master": parameter, "ema": average[name], **adamw.state[parameter]}
        state |= {f"{kind}/{name}": kinds[kind].detach().flatten().numpy() for kind in KINDS}
    return Trained(losses, norms, state)


def take_steps(engine: Engine, config: TrainConfig, first: int, last: int) -> tuple[list[float], list[float]]:
    """Take steps as one rank of many; return this rank's parts of the losses, and the norms."""
    mine = micro_batches(POSITIONS, engine.world, engine.rank, config.micro_batch)
    shares, norms = [], []
    for step in range(first, last):
        batches = [rows(step, places, skips=config.data.on_bad_shard == "skip") for places in mine]
        outcome = engine.step(batches, RATES[step])
        assert outcome.applied
        shares.append(float(outcome.loss_share))
        norms.append(outcome.gradient_norm)
    return shares, norms


def losses_of_averages(engine: Engine, config: TrainConfig) -> dict[str, list[float]]:
    """Return the losses of some rows, in turn with the weights, their moving average, and the weights again."""
    batch = rows(0, range(POSITIONS), skips=False)
    before = [parameter.detach().clone() for parameter in engine._model.module.parameters()]
    losses = {"weights": engine.losses(batch).tolist()}
    with engine.averaged():
        losses["average"] = engine.losses(batch).tolist()
    losses["weights again"] = engine.losses(batch).tolist()
    for parameter, copy in zip(engine._model.module.parameters(), before, strict=True):
        assert torch.equal(parameter.detach().view(torch.uint8), copy.view(torch.uint8)), config.zero_stage
    return losses


def save(run: Storage, engine: Engine, step: int) -> None:
    saving = Save(step, engine.counters, engine.world, "t", engine.shapes, "attempt")
    checkpoints.write_part(run, saving, engine.rank, engine.pieces())
    torch.distributed.barrier()
    if engine.rank == 0:
        assert checkpoints.commit(run, saving)
    torch.distributed.barrier()


def resume(run: Storage, config: TrainConfig) -> Engine:
    found = checkpoints.open_checkpoint(run, RESUME_AT)
    model = make_model()
    load_weights(model, found.read_all("master"))
    engine = Engine(model, loss_of, config)
    engine.restore(found)
    return engine


def run_rank(rank: int, world: int, port: int, folder: str) -> None:
    """Train in every way as one rank, with and without an interruption."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_distributed("cpu")
    # So that gradients are added up, and the moving average is exchanged, in several buckets.
    replicated._BUCKET = fragments._BUCKET = 20
    run = open_storage(folder)
    for kind, variant in CASES:
        config, here = config_of(kind, variant), run.child(f"{kind}, {variant}")
        engine = Engine(make_model(), loss_of, config)
        if config.precision == "fp16":
            engine.loss_scale = LOSS_SCALE
        first = take_steps(engine, config, 0, RESUME_AT)
        save(here, engine, RESUME_AT)
        second = take_steps(engine, config, RESUME_AT, STEPS)
        save(here, engine, STEPS)
        here.write_json(f"rank-{rank}.json", {"losses": first[0] + second[0], "norms": first[1] + second[1]})
        here.write_json(f"averaged-{rank}.json", losses_of_averages(engine, config))
        average = engine.gather_ema()
        assert (average is None) == (rank > 0)
        if average is not None:
            here.write_json("average.json", {name: array.flatten().tolist() for name, array in average.items()})
        engine = resume(here, config)
        take_steps(engine, config, RESUME_AT, STEPS)
        save(here.child("resumed"), engine, STEPS)
    torch.distributed.destroy_process_group()


def start_gang(folder: Path, world: int) -> list[SpawnProcess]:
    """Start real processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=run_rank, args=(rank, world, port, str(folder)), daemon=True) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Storage]:
    """What gangs of one and of two ranks left."""
    folders = {world: tmp_path_factory.mktemp(f"gang-{world}") for world in WORLDS}
    ranks = [process for world, folder in folders.items() for process in start_gang(folder, world)]
    for process in ranks:
        process.join()
    assert {process.exitcode for process in ranks} == {0}
    return {world: open_storage(str(folder)) for world, folder in folders.items()}


def state_of(run: Storage, step: int = STEPS) -> State:
    found = checkpoints.open_checkpoint(run, step)
    found.verify()
    return {f"{kind}/{name}": found.read(kind, name) for kind in KINDS for name in found.shapes}


def assert_equal(state: State, expected: State) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)


each_case = pytest.mark.parametrize(("kind", "variant"), CASES, ids=map(", ".join, CASES))


@each_case
@pytest.mark.parametrize("world", WORLDS)
def test_every_engine_takes_the_steps_of_a_plain_loop(
    gangs: dict[int, Storage], world: int, kind: str, variant: str
) -> None:
    run = gangs[world].child(f"{kind}, {variant}")
    expected, rounding = reference(variant), ROUNDING.get(variant, 1e-5)
    ranks = [run.read_json(f"rank-{rank}.json") for rank in range(world)]
    for rank in ranks:
        np.testing.assert_allclose(rank["norms"], expected.norms, rtol=rounding, err_msg="the norm before clipping")
    shares = [rank["losses"] for rank in ranks]
    np.testing.assert_allclose(np.sum(shares, axis=0), expected.losses, rtol=rounding, err_msg="the mean loss")
    state = state_of(run)
    assert state.keys() == expected.state.keys()
    if variant not in ROUNDING:
        for name, values in expected.state.items():
            np.testing.assert_allclose(state[name], values, rtol=2e-4, atol=1e-8, err_msg=name)


@each_case
@pytest.mark.parametrize("world", WORLDS)
def test_the_moving_average_is_gathered_whole(gangs: dict[int, Storage], world: int, kind: str, variant: str) -> None:
    run = gangs[world].child(f"{kind}, {variant}")
    gathered = {
        f"ema/{name}": np.array(values, dtype=np.float32) for name, values in run.read_json("average.json").items()
    }
    assert_equal(gathered, {name: values for name, values in state_of(run).items() if name.startswith("ema/")})


@each_case
@pytest.mark.parametrize("world", WORLDS)
def test_the_model_computes_with_the_average_and_has_its_weights_again(
    gangs: dict[int, Storage], world: int, kind: str, variant: str
) -> None:
    run = gangs[world].child(f"{kind}, {variant}")
    batch, state, rounding = rows(0, range(POSITIONS), skips=False), state_of(run), ROUNDING.get(variant, 1e-5)
    expected = {}
    for name, weights in (("weights", "master"), ("average", "ema")):
        model = make_model()
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        load_weights(model, {key: state[f"{weights}/{key}"].reshape(shape) for key, shape in shapes.items()})
        expected[name] = loss_of(model, batch).detach().numpy()
    if variant not in ROUNDING:
        assert np.abs(expected["weights"] / expected["average"] - 1).max() > 20 * rounding, "it makes a difference"
    for rank in range(world):
        losses = run.read_json(f"averaged-{rank}.json")
        np.testing.assert_allclose(losses["weights"], expected["weights"], rtol=rounding)
        np.testing.assert_allclose(losses["average"], expected["average"], rtol=rounding)
        assert losses["weights again"] == losses["weights"]


@pytest.mark.parametrize("variant", ["default norm", "small norm"])
def test_the_norms_are_such_that_clipping_shows(variant: str) -> None:
    norms, limit = reference(variant).norms, config_of("stage 0", variant).optimizer.max_grad_norm
    assert max(norms) > 2 * limit
    assert (min(norms) < limit) == (variant == "default norm"), "some steps are not clipped, or all are"


@each_case
@pytest.mark.parametrize("world", WORLDS)
def test_a_resumed_engine_goes_on_as_one_that_was_not_stopped(
    gangs: dict[int, Storage], world: int, kind: str, variant: str
) -> None:
    run = gangs[world].child(f"{kind}, {variant}")
    assert_equal(state_of(run.child("resumed")), state_of(run))
    straight, resumed = (checkpoints.open_checkpoint(place, STEPS) for place in (run, run.child("resumed")))
    assert resumed.counters == straight.counters
    scale = LossScale(2 * LOSS_SCALE.value, STEPS - 2) if variant == "fp16" else LossScale(1.0)
    counters = {"updates": STEPS, "loss_scale": scale.value, "loss_scale_steady": scale.steady}
    assert straight.counters == {**counters, "base_share": pytest.approx(0.1 * 2 / 11 * 0.2**3)}


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in ROUNDING])
def test_an_exact_engine_ends_with_the_same_bytes_at_any_number_of_ranks(
    gangs: dict[int, Storage], variant: str
) -> None:
    alone, together = (state_of(gangs[world].child(f"exact, {variant}")) for world in WORLDS)
    assert_equal(together, alone)
