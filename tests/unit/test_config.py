"""One document decides a run: what is wrong or contradictory is refused by name, and what is printed runs again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from components.errors import ConfigError
from components.settings import Settings, flatten
from pipeline.config import RunConfig, place_settings, resolve, resolve_parameters, to_yaml
from pipeline.recipe import portable, recipes

SMALL = str(Path(__file__).parents[1] / "recipes/small.yaml")


def rejected(*overrides: str, recipe: str = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(recipe, overrides)
    return str(caught.value)


def again(config: RunConfig) -> RunConfig:
    """Resolve what the document prints as."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "printed.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        return resolve(str(file))


@pytest.mark.parametrize("recipe", [*recipes(), SMALL])
def test_a_printed_run_is_the_same_run(recipe: str) -> None:
    config = resolve(recipe, ["train.optimizer.learning_rate=1e-4", "seed=9007199254740993"], source="other place")
    assert config.train.optimizer.learning_rate == 1e-4
    assert config.seed == 2**53 + 1
    assert again(config) == config
    assert again(config).run == config.run


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_text_survives_being_printed(text: str) -> None:
    values = {"name": "x", "ingest": {"source": "y"}, "publish": {"description": text}}
    config = RunConfig.parse(values)
    assert again(config) == config


def test_the_name_of_a_run_stands_for_all_that_decides_its_result() -> None:
    assert resolve("demo").run == resolve("demo", ["seed=0", "train.ranks=2"]).run
    elsewhere = ["launch.budget_usd=5", "launch.restarts.max_crashes=9", "placement.cloud=gke", "placement.nodes=4"]
    elsewhere += ["pods.heavy.hours=3"]
    assert resolve("demo").run == resolve("demo", elsewhere).run
    runs = [resolve("demo", [override]).run for override in ("seed=1", "train.data.window=3", "publish.license=mit")]
    assert len({resolve("demo").run, *runs}) == 4
    assert all(run.startswith("demo-") for run in runs)


def test_all_that_is_wrong_is_told_at_once_and_the_nearest_name_is_suggested() -> None:
    told = rejected("train.stepz=3", "train.global_batch=lots", "index.held_out=1.5", "latnets.resolution=32").split(
        "\n"
    )
    for parts in (
        ("train.stepz", "3", "train.steps?"),
        ("latnets", "{'resolution': 32}", "latents?"),
        ("train.global_batch", "'lots'", "whole number"),
        ("index.held_out", "1.5", "less than 1"),
    ):
        assert any(all(part in line for part in parts) for line in told), parts
    assert len(told) == 4


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["launch.spot_drill.step=400"], ("launch.spot_drill.step (400)", "train.steps (400)")),
        (["launch.spot_drill.rank=2"], ("launch.spot_drill.rank (2)", "train.ranks (2)")),
        (["launch.where=trainjob"], ("launch.spot_drill.step", "launch.where", "local", "trainjob")),
        (["train.samples.steps=[500]"], ("train.samples.steps [500]", "train.steps (400)")),
        (["train.optimizer.warmup_steps=400"], ("train.optimizer.warmup_steps (400)", "train.steps (400)")),
        (["latents.resolution=64"], ("latents.resolution (64)", "model.scratch.architecture.resolution (32)")),
        (["index.held_out=0"], ("index.held_out (0)", "frechet_distance")),
        (["name=base"], ("models/base",)),
        (["name=A_b"], ("name", "'A_b'")),
    ],
)
def test_what_contradicts_itself_is_rejected(overrides: list[str], parts: tuple[str, ...]) -> None:
    message = rejected(*overrides)
    assert all(part in message for part in parts)


def test_all_contradictions_are_told_at_once() -> None:
    told = rejected(
        "launch.spot_drill.step=900", "launch.spot_drill.rank=2", "latents.resolution=64", "index.held_out=0"
    )
    assert len(told.split("\n")) == 4


def test_what_only_looks_like_a_contradiction_is_taken() -> None:
    assert resolve("demo", ["latents.resolution=64", "model.base=some/model"]).latents.resolution == 64
    assert resolve("demo", ["launch.spot_drill.step=null", "train.ranks=1"]).train.ranks == 1
    assert resolve("demo", ["index.held_out=0", "evaluate.promotion.metric=prompt_accuracy"]).index.held_out == 0


def sections(config: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[Settings]]]:
    """Yield all configs of a run, each with its path and a dot."""
    for name, field in config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Settings):
            yield f"{path}{name}.", section
            yield from sections(section, f"{path}{name}.")


def test_a_renamed_setting_is_rejected_with_a_path_that_exists() -> None:
    settings = flatten(resolve("demo").model_dump())
    renamed = [(path, *names) for path, config in sections(RunConfig) for names in config.RENAMED.items()]
    assert ("train.", "keep_every", "checkpoint.keep_every") in renamed
    for path, old_name, new_name in renamed:
        assert f"{path}{new_name}" in settings
        assert f"{path}{old_name} is now {path}{new_name}" in rejected(f"{path}{old_name}=0")


@pytest.mark.parametrize("several", ['["a", "b"]', "[{source: a, repeats: 2.0}, {source: b}]", "[{source: a}]"])
def test_several_sources_replace_one_and_one_replaces_several(several: str, tmp_path: Path) -> None:
    config = resolve("scratch", [f"ingest.sources={several}"])
    assert (config.ingest.source, config.ingest.places[0]) == (None, "a")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: scratch\ningest: {{sources: {several}}}\n")
    assert resolve(str(mine)) == config
    assert resolve(str(mine), source="c").ingest.places == ("c",)
    assert resolve(str(mine), ["ingest.source=c"]).ingest.places == ("c",)
    other = tmp_path / "other.yaml"
    other.write_text(f"base: {mine}\ningest: {{source: c}}\n")
    assert resolve(str(other)).ingest.places == ("c",)
    with pytest.raises(ConfigError, match="are both set"):
        resolve("scratch", [f"ingest.sources={several}", "ingest.source=c"])


def test_places_of_a_person_are_one_source_or_several() -> None:
    assert place_settings(["a"]) == ("a", [])
    places = ["a b", "s3://c/d: e", "it's, [x]"]
    source, overrides = place_settings(places)
    assert resolve("demo", overrides, source).ingest.places == tuple(places)


@pytest.mark.parametrize("source", ["recipe", "", " "])
@pytest.mark.parametrize("overrides", [["none"], [], [""], ["none", ""]])
def test_what_the_form_shows_where_nobody_types_changes_nothing(source: str, overrides: list[str]) -> None:
    assert resolve_parameters("demo", source, overrides) == resolve("demo")


def test_what_a_person_types_wins_over_the_cluster_and_that_over_the_recipe() -> None:
    cluster = ["placement.cloud=gke", "placement.queue=team"]
    run = resolve_parameters("sd15-full", "s3://b/images", ["none", "placement.queue=other"], cluster)
    assert (run.placement.cloud, run.placement.queue, run.ingest.source) == ("gke", "other", "s3://b/images")
    with pytest.raises(ConfigError, match="'nonsense'"):
        resolve_parameters("demo", "recipe", ["nonsense"])


def test_a_source_may_be_called_anything() -> None:
    name = 'it\'s: [a] "place" #1\n😀 python3'
    assert resolve("demo", source=name).ingest.source == name


def test_a_recipe_of_the_release_goes_before_one_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recipe.RELEASE_RECIPES", tmp_path)
    (tmp_path / "demo.yaml").write_text("name: ours\ningest: {source: x}\n")
    (tmp_path / "cats.yaml").write_text("name: cats\ningest: {source: x}\n")
    (tmp_path / "notes.txt").write_text("not a recipe")
    assert resolve("demo").name == "ours"
    assert recipes().count("demo") == recipes().count("cats") == 1
    assert "notes" not in " ".join(recipes())


def test_a_file_travels_as_text_that_is_read_as_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text in ("{name: one, ingest: {source: x}}", "name: one\ningest: {source: x}\n\n"):
        file.write_text(text)
        assert resolve(portable(str(file))) == resolve(str(file))
    assert portable("demo") == "demo"
    assert portable(portable(str(file))) == portable(str(file))


def test_a_section_that_is_no_section_is_rejected() -> None:
    assert rejected("ingest=3").startswith("ingest: 3 ")
    assert "--set 'ingest.source=x': ingest " in rejected("ingest=3", "ingest.source=x")


def test_a_recipe_that_is_none_is_rejected(tmp_path: Path) -> None:
    message = rejected(recipe="dmeo")
    assert all(part in message for part in ("'dmeo'", *recipes(), ".yaml"))
    assert str(tmp_path / "none.yaml") in rejected(recipe=str(tmp_path / "none.yaml"))
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    assert f"{file} holds a list" in rejected(recipe=str(file))
    file.write_text("name: x\n")
    assert rejected(recipe=str(file)).startswith("ingest: missing; ")
    assert "ingest.source" in rejected(recipe=str(file))


@pytest.mark.parametrize("text", ["ingest.source=elsewhere", "ingest.sources=[{source: photos, repeats: 2}]"])
def test_places_that_are_given_twice_are_an_error_and_not_lost(text: str) -> None:
    name = text.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"source 'photos' and the override {name} both say where .* give one"):
        resolve("demo", [text], "photos")
    assert resolve("demo", ["ingest.source=photos"], "photos").ingest.source == "photos"
