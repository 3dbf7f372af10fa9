"""A plan says the expected time and cost of a run, what it assumes, and what it lacks."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.accounting.bill import Planned
from components.accounting.ledger import append_ledger, ledger_lines
from components.errors import ConfigError
from components.model.unet_shape import SD2
from components.storage.open import open_storage
from pipeline.cli import main
from pipeline.config import RunConfig, resolve
from pipeline.cost.forecast import DAY, daly
from pipeline.cost.history import model_size
from pipeline.cost.plan import Assumptions, Plan
from pipeline.cost.planning import make_plan
from pipeline.cost.prices import read_prices
from pipeline.cost.stored_plan import store_plan
from pipeline.cost.tables import bill_table, plan_table, show

SD2_BASE = "stabilityai/stable-diffusion-2-base"
# The 512-pixel phase of MosaicML's Stable Diffusion 2 base, on 16 nodes of 8 A100 each.
MOSAIC: dict[str, Any] = {
    "name": "sd2",
    "ingest": {"source": "images"},
    "model": {"base": SD2_BASE},
    "latents": {"resolution": 512},
    "train": {"steps": 850_000, "global_batch": 2048, "precision": "bf16", "checkpoint": {"every": 500}},
    "launch": {"where": "trainjob"},
    "placement": {"cloud": "eks", "instance": "p4d.24xlarge", "gpus": 8, "nodes": 16},
}
DEMO: dict[str, Any] = {"name": "demo", "ingest": {"source": "images"}, "train": {"steps": 100, "global_batch": 64}}


def settings(base: dict[str, Any] = MOSAIC, **sections: dict[str, Any]) -> RunConfig:
    merged = {name: {**base.get(name, {}), **section} for name, section in sections.items()}
    return RunConfig.parse({**base, **merged})


def plan(config: RunConfig, images: int | None = None, **assumptions: Any) -> Plan:
    return make_plan(config, read_prices(), model_size(config), None, images, Assumptions.parse(assumptions))


def table(plan: Plan) -> str:
    stream = io.StringIO()
    show(Console(file=stream), plan_table(plan))
    return stream.getvalue()


def test_a_published_run_is_planned_as_it_went() -> None:
    """128 A100 took 4.39 of their 5.51 days for this phase."""
    estimate = plan(settings(), reclaims_per_node_day=0, failures_per_node_day=0, wait_seconds=0, start_seconds=0)
    assert estimate.images_trained == 1_740_800_000
    assert estimate.images_per_second == 4590
    calm = estimate.pools["on-demand"].forecast
    assert calm is not None
    assert calm.hours / 24 == pytest.approx(4.39, abs=0.01)
    assert calm.usd == pytest.approx(calm.hours * 16 * 21.95764)
    assert calm.usd_per_1000_images == pytest.approx(calm.usd / 1_740_800)


def test_spot_is_set_against_on_demand() -> None:
    estimate = plan(settings())
    assert (estimate.pool, list(estimate.pools)) == ("spot", ["spot", "on-demand"])
    spot, demand = estimate.pools["spot"], estimate.pools["on-demand"]
    assert spot.forecast is not None
    assert demand.forecast is not None
    assert spot.forecast.hours > demand.forecast.hours
    assert spot.forecast.usd < demand.forecast.usd
    assert spot.forecast.interruptions == pytest.approx(spot.forecast.paid_hours / 24 * 16 * 1.004)
    assert estimate.expected == spot.forecast
    assert spot.best_steps is not None
    assert demand.best_steps is not None
    assert spot.best_steps < demand.best_steps
    for pool in (spot, demand):
        assert pool.forecast is not None
        assert pool.best is not None
        assert pool.best.goodput >= pool.forecast.goodput


@pytest.mark.parametrize("placement", [{"spot": False}, {"cloud": "kind"}])
def test_a_run_that_starts_on_demand_is_planned_there(placement: dict[str, Any]) -> None:
    estimate = plan(settings(placement=placement))
    assert (estimate.pool, list(estimate.pools)) == ("on-demand", ["spot", "on-demand"])
    assert estimate.expected is not None
    assert estimate.expected == estimate.pools["on-demand"].forecast != estimate.pools["spot"].forecast
    assert estimate.to_json()["expected"]["usd"] == pytest.approx(estimate.expected.paid_hours * 16 * 21.95764)


def test_who_counts_on_no_notice_saves_more_often() -> None:
    counting, not_counting = (plan(settings(), saved_share=share).pools["spot"].best_steps for share in (0.9, 0.0))
    assert counting is not None
    assert not_counting is not None
    assert not_counting < counting
    assert plan(settings(), saved_share=1.0).pools["spot"].best_steps is None, "then nothing is ever lost"


@pytest.mark.parametrize(("pool", "lost_per_node_day"), [("spot", 0.1 * (1 + 0.004)), ("on-demand", 0.004)])
def test_the_best_interval_is_dalys_for_what_a_pool_loses(pool: Any, lost_per_node_day: float) -> None:
    """Of 128 GPUs each copies its share at 5 GB/s; nine of ten reclaims come with notice, and no failure does."""
    estimate = plan(settings()).pools[pool]
    stall = 16 * SD2.parameters / 128 / 5e9
    assert estimate.best_seconds == pytest.approx(daly(stall, DAY / (lost_per_node_day * 16)), rel=0.02)


def test_the_best_interval_is_no_shorter_than_a_save_and_no_longer_than_the_work() -> None:
    slow = plan(settings(), write_gb_per_second=0.001).pools["spot"]
    assert slow.best_seconds == pytest.approx(16 * SD2.parameters / 16 / 1e6, rel=0.01)
    short = plan(settings(train={"steps": 10, "samples": {"steps": []}, "optimizer": {"warmup_steps": 0}})).pools[
        "spot"
    ]
    assert short.best_steps == 10


def test_what_nobody_saves_in_time_is_lost_on_demand_too() -> None:
    estimate = plan(settings(), saved_share=1.0)
    assert estimate.pools["on-demand"] == plan(settings(), saved_share=0.0).pools["on-demand"]


def test_a_speed_at_another_precision_is_not_the_published_one() -> None:
    assert plan(settings(train={"precision": "fp32"})).speed_basis.startswith("FLOPs")


def test_what_never_ends_is_null() -> None:
    estimate = plan(settings(), reclaims_per_node_day=1000)
    assert estimate.expected is not None
    assert estimate.expected.hours == math.inf
    assert estimate.to_json()["expected"]["hours"] is None
    json.dumps(estimate.to_json(), allow_nan=False)


def test_without_its_pool_nothing_is_expected() -> None:
    estimate = replace(plan(settings()), pools={})
    assert estimate.expected is None
    assert estimate.to_json()["expected"] is None


def test_without_a_measurement_the_arithmetic_tells_the_speed() -> None:
    estimate = plan(settings(latents={"resolution": 768}))
    assert estimate.speed_basis.startswith("FLOPs")
    assert estimate.flops_per_image == 3 * SD2.forward_flops(96, 96, 77)
    assert estimate.images_per_second == pytest.approx(312e12 * 128 * 0.25 / estimate.flops_per_image)
    assert any("25%" in note and "NVIDIA A100" in note and "(mfu)" in note for note in estimate.assumed)
    faster = plan(settings(latents={"resolution": 768}), mfu=0.5)
    assert estimate.images_per_second is not None
    assert faster.images_per_second == pytest.approx(2 * estimate.images_per_second)


def test_a_speed_that_is_told_comes_before_all() -> None:
    estimate = plan(settings(), images_per_second=1000)
    assert (estimate.images_per_second, estimate.speed_basis) == (1000, "given")
    assert estimate.mfu == pytest.approx(1000 * 3 * SD2.forward_flops(64, 64, 77) / (312e12 * 128))


def test_notices_help_only_where_a_save_fits_into_the_grace() -> None:
    for estimate, share in ((plan(settings()), "90%"), (plan(settings(), write_gb_per_second=0.001), "0%")):
        assert any(note.startswith(share) and "(saved_share)" in note for note in estimate.assumed)
    # Copying out of the GPU is part of a save: 110 s of grace, and 13.8 GB in 128 parts.
    for copying, warned in ((0.0011, 0.9), (0.0009, 0.0)):
        fitting = plan(settings(), copy_gb_per_second=copying, saved_share=warned)
        assert plan(settings(), copy_gb_per_second=copying).pools == fitting.pools


def test_storage_is_what_is_kept() -> None:
    estimate = plan(settings(), images=1_000_000)
    assert estimate.checkpoint_bytes == 16 * SD2.parameters
    assert estimate.checkpoints_kept == 3
    assert estimate.dataset_bytes == pytest.approx(227e9, rel=0.01)
    assert estimate.dataset_bytes is not None
    kept = estimate.dataset_bytes + 3 * estimate.checkpoint_bytes
    assert estimate.storage_usd_per_month == pytest.approx(kept / 1e9 * 0.023)
    assert any("--images" in note for note in plan(settings()).unknown)
    assert not any("--images" in note for note in estimate.unknown)


def test_a_budget_that_is_not_enough_says_how_far_it_goes() -> None:
    estimate = plan(settings(launch={"budget_usd": 1000.0}))
    assert estimate.expected is not None
    assert f" {int(850_000 * 1000 / estimate.expected.usd):,} steps" in table(estimate)
    assert "$1,000,000, enough" in table(plan(settings(launch={"budget_usd": 1e6})))


def test_what_is_not_known_is_said_and_not_made_up() -> None:
    config = settings(
        model={"base": "someone/something"}, placement={"instance": "Standard_ND96asr_v4", "cloud": "aks"}
    )
    estimate = plan(config)
    assert (estimate.parameters, estimate.images_per_second, estimate.expected) == (None, None, None)
    text = " ".join(table(estimate).split())
    for part in ("someone/something", "images_per_second=", "spot price", "--prices", "launch.usd_per_hour"):
        assert part in text
    json.dumps(estimate.to_json(), allow_nan=False)

    priceless = plan(settings(placement={"instance": "Standard_ND96asr_v4", "cloud": "aks"}))
    assert priceless.expected is not None
    assert math.isnan(priceless.expected.usd)
    assert priceless.to_json()["expected"]["usd"] is None


def test_machines_that_no_list_knows() -> None:
    with pytest.raises(ConfigError, match=r"'p4d\.24xlarg'.* p4d\.24xlarge\?"):
        plan(settings(placement={"instance": "p4d.24xlarg"}))
    estimate = plan(settings(placement={"instance": "p99.xlarge"}, launch={"usd_per_hour": 5.0}), images_per_second=100)
    assert estimate.pools["spot"].usd_per_node_hour == 5.0


def test_a_price_that_is_told_comes_before_the_list_even_if_it_is_nothing() -> None:
    estimate = plan(settings(launch={"usd_per_hour": 0.0}))
    assert {pool.usd_per_node_hour for pool in estimate.pools.values()} == {0.0}


def test_gpus_that_lie_idle_are_paid_for() -> None:
    def idle(gpus: int) -> list[str]:
        return [note for note in plan(settings(placement={"gpus": gpus})).assumed if "p4d.24xlarge has 8 GPUs" in note]

    assert len(idle(1)) == 1
    assert idle(8) == []


def test_this_machine_costs_nothing_unless_told() -> None:
    estimate = plan(settings(DEMO), images_per_second=64)
    assert (estimate.pool, estimate.nodes) == ("local", 1)
    assert estimate.expected is not None
    assert (estimate.expected.usd, estimate.expected.interruptions) == (0, 0)
    assert estimate.expected.paid_hours == pytest.approx((100 + 300) / 3600, rel=0.01)
    assert estimate.expected.hours == estimate.expected.paid_hours, "nobody waits for this machine"
    mine = plan(settings(DEMO, launch={"usd_per_hour": 2.0}), images_per_second=64).expected
    assert mine is not None
    assert mine.usd == pytest.approx(2 * estimate.expected.paid_hours)


def test_this_machine_may_be_one_of_the_list() -> None:
    estimate = plan(settings(launch={"where": "local"}, train={"ranks": 8}))
    assert (estimate.nodes, estimate.processes, estimate.images_per_second) == (1, 8, 290)
    assert set(estimate.pools) == {"spot", "on-demand"}
    assert estimate.expected is not None
    assert estimate.expected.usd == pytest.approx(estimate.expected.paid_hours * 9.53)


def test_the_first_plan_is_kept_with_the_run() -> None:
    workdir = open_storage("memory://plan-stored")
    workdir.delete_tree("runs")
    config = settings()
    store_plan(config, workdir)
    key = f"runs/{config.run}/plan.json"
    kept = workdir.read(key)
    assert Planned.model_validate(json.loads(kept)).expected is not None
    more = settings(placement={"nodes": 2})
    assert more.run == config.run
    store_plan(more, workdir)
    assert workdir.read(key) != kept, "training has not begun: the newest counts"
    append_ledger(workdir.child(f"runs/{config.run}"), ledger_lines(0, {"useful": 1}))
    store_plan(config, workdir)
    assert workdir.read_json(key)["nodes"] == 2


def test_a_run_may_go_on_machines_that_no_list_knows() -> None:
    workdir = open_storage("memory://plan-odd")
    store_plan(settings(placement={"instance": "p99"}), workdir)
    assert not list(workdir.list())
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        store_plan(settings(placement={"prices": "gone.yaml"}), workdir)


def test_tables_fit_a_small_terminal() -> None:
    wide = settings(model={"base": "some/" + "x" * 90}, launch={"budget_usd": 12_345.0})
    for estimate in (plan(settings(), images=10**9), plan(wide), plan(settings(DEMO)), plan(settings(), mfu=1e-9)):
        lines = table(estimate).splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines), "nothing is cut off"


# The verbs.

OVERRIDES = [
    "launch.where=trainjob", "launch.spot_drill.step=null", "placement.cloud=eks", "placement.instance=p4d.24xlarge",
    "placement.gpus=8", f"model.base={SD2_BASE}", "latents.resolution=512", "train.precision=bf16",
]  # fmt: skip


def test_plan_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "demo", "--set", *OVERRIDES, "--images", "1000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pools"]["spot"]["forecast"]["usd"] < printed["pools"]["on-demand"]["forecast"]["usd"]
    assert printed["expected"] == printed["pools"]["spot"]["forecast"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--assume", "mfu=3"], "mfu: 3 "),
        (["--assume", "mf=0.3"], " mfu?"),
        (["--assume", "mfu"], "--assume 'mfu'"),
        (["--prices", "gone.yaml"], "gone.yaml"),
        (["--set", "placement.instance=p4d.24xlarg"], " p4d.24xlarge?"),
    ],
)
def test_a_wrong_question_is_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "demo", *arguments]) == 78
    assert text in capsys.readouterr().err


def test_cost_tells_what_a_run_has_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = open_storage(str(tmp_path))
    config = settings(launch={"budget_usd": 100.0})
    run = workdir.child(f"runs/{config.run}")
    run.write_json("config.json", config.model_dump(mode="json"))
    store_plan(config, workdir)
    append_ledger(run, ledger_lines(0, {"pending": 1800, "useful": 3600}, 16, "spot", "p4d.24xlarge", 9.5))
    append_ledger(run, ledger_lines(1, {"useful": 900, "idle": 900}, 16, "on-demand", "p4d.24xlarge", 22.0))
    run.write_lines("metrics.jsonl", [{"step": step, "samples": 2048, "seconds": 1.0} for step in range(1, 101)])
    run.append("metrics.jsonl", b'{"step": 101, "sampl')
    began = [{"time": 1.0, "event": "attempt-started", "attempt": number} for number in (0, 1, 2)]
    ended = [{"time": 2.0, "event": "attempt-ended", "attempt": number, "exit_code": 75} for number in (0, 1)]
    run.write_lines("events.jsonl", began + ended)

    assert main(["cost", "sd2", "--workdir", str(tmp_path), "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["usd"] == pytest.approx(16 * 9.5 + 16 * 22 / 2)
    assert costs["budget"]["left"] == pytest.approx(100 - costs["usd"])
    assert costs["usd_per_1000_images"] == pytest.approx(1000 * costs["usd"] / 204_800)
    assert costs["planned"]["hours"] > 90

    assert main(["cost", config.run, "--workdir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("pending", "16 spot p4d.24xlarge", "$152.00", "$328.00", " plan", "$228.00", "Attempt 2"):
        assert part in text

    assert main(["cost", "sd3", "--workdir", str(tmp_path)]) == 78
    error = capsys.readouterr().err
    for part in ("'sd3'", str(tmp_path), "darkroom runs ls"):
        assert part in error


def test_a_run_without_a_ledger_has_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_storage(str(tmp_path)).write_json("runs/new-1/config.json", {"name": "new"})
    assert main(["cost", "new-1", "--workdir", str(tmp_path)]) == 0
    assert "$0.00" in capsys.readouterr().out


def test_hostile_names_stay_names() -> None:
    bill: dict[str, Any] = {
            "seconds": 1.0, "node_seconds": 1.0, "usd": 0.0, "goodput": None, "usd_per_useful_hour": None,
            "usd_per_1000_images": None, "budget": None, "planned": None, "attempts": [],
            "states": {"[red]x[/red]\x1b[31m": {"seconds": 1.0, "node_seconds": 1.0, "usd": 0.0}}}  # fmt: skip
    stream = io.StringIO()
    show(Console(file=stream), bill_table("[bold]run\n", bill, 0))
    assert "[red]x[/red]" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_plan_says_how_often_each_image_is_seen() -> None:
    estimate = plan(settings(DEMO, index={"held_out": 0.2}), images=2000)
    assert estimate.epochs == pytest.approx(4)
    assert "4 epochs" in table(estimate)
    assert not estimate.warnings


@pytest.mark.parametrize(
    ("config", "images", "words"),
    [
        (resolve("sd15-full"), 200, ("50,000 steps of 512", "129,293 times", "train.steps=null train.epochs=")),
        (resolve("sd15-full"), 60_000_000, ("only 43%", "train.steps=116016")),
    ],
)
def test_a_plan_warns_of_an_absurd_number_of_epochs(config: RunConfig, images: int, words: tuple[str, ...]) -> None:
    (warning,) = plan(config, images=images).warnings
    assert all(word in warning for word in words), warning
    assert "warnings" in table(plan(config, images=images))


def test_an_epoch_of_repeated_images_has_more_steps() -> None:
    config = settings(DEMO, train={"steps": None, "epochs": 10}, index={"held_out": 0.5})
    once, often = (
        make_plan(config, read_prices(), model_size(config), None, 1280, Assumptions(), repeats) for repeats in (1, 2.5)
    )
    assert (once.steps, often.steps) == (100, 250)
    assert (once.epochs, often.epochs) == (10, 10)
    assert once.dataset_bytes == often.dataset_bytes


def test_epochs_are_planned_as_steps() -> None:
    config = settings(DEMO, train={"steps": None, "epochs": 10}, index={"held_out": 0.5})
    assert plan(config, images=1280).steps == 100
    with pytest.raises(ConfigError, match="--images"):
        plan(config)
