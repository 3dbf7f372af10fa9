"""A recipe may give only what differs from another; what is sent elsewhere holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline.recipe
from components.errors import ConfigError
from pipeline.cli import main
from pipeline.config import resolve
from pipeline.recipe import portable, read_recipe


def write(file: Path, **values: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values))
    return str(file)


def rejection(recipe: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe)
    return str(caught.value)


def test_a_recipe_gives_only_what_differs_from_a_named_one(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", base="demo", name="mine", train={"steps": 450})
    expected = resolve("demo", ["name=mine", "train.steps=450"])
    assert resolve(mine) == expected
    assert resolve(Path(mine).read_text()) == expected


def test_a_file_names_its_base_relative_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shared/base.yaml", base="demo", seed=7)
    mine = write(tmp_path / "runs/mine.yaml", base="../shared/base.yaml", name="mine")
    monkeypatch.chdir(tmp_path / "shared")
    assert resolve(mine) == resolve("demo", ["name=mine", "seed=7"])


def test_sections_are_merged_and_lists_and_values_are_replaced(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", a={"b": {"c": 1, "d": 2}, "list": [1, 2]}, kept="as it is", value={"x": 1})
    mine = write(tmp_path / "mine.yaml", base="base.yaml", a={"b": {"c": 3}, "list": [4]}, value=5)
    assert read_recipe(mine) == {"a": {"b": {"c": 3, "d": 2}, "list": [4]}, "kept": "as it is", "value": 5}


def test_a_section_that_is_null_starts_from_the_defaults_and_a_null_value_is_null(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", section={"x": 1, "part": {"y": 2}}, value={"limit": 3})
    mine = write(tmp_path / "mine.yaml", base="base.yaml", section={"part": None}, value={"limit": None})
    assert read_recipe(mine) == {"section": {"x": 1}, "value": {"limit": None}}
    assert resolve("base: demo\nevaluate: null\n").evaluate == resolve("name: x\ningest: {source: y}\n").evaluate


def test_a_release_may_build_on_its_own_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.recipe, "RELEASE_RECIPES", tmp_path)
    write(tmp_path / "house.yaml", base="sd15-full", placement={"cloud": "aks"})
    write(tmp_path / "cats.yaml", base="house", name="cats")
    config = resolve("cats")
    assert (config.name, config.placement.cloud, config.train) == ("cats", "aks", resolve("sd15-full").train)


def test_what_is_sent_elsewhere_holds_its_bases_and_is_the_same_run(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", base="demo", seed=7)
    mine = write(tmp_path / "mine.yaml", base="base.yaml", publish={"description": "one\u2028two"})
    for text in (portable(mine), portable("base: demo\nseed: 7\npublish: {description: 'one\u2028two'}\n")):
        assert "base" not in yaml.safe_load(text)
        assert "\n" in text
        assert resolve(text) == resolve(mine)


def test_what_has_no_base_is_sent_as_it_is_written(tmp_path: Path) -> None:
    text = "# why\nname: x\ningest: {source: y}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert portable(str(tmp_path / "x.yaml")) == portable(text) == text
    assert portable("sd21-full") == "sd21-full"


def test_the_printed_settings_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.yaml", base="sd21-full", name="mine")
    assert main(["config", "--recipe", mine]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == resolve("sd21-full", ["name=mine"]).model_dump(mode="json")


def test_a_circle_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", base="second.yaml")
    second = write(tmp_path / "second.yaml", base="../" + tmp_path.name + "/first.yaml")
    assert f"{first} -> {second} -> {first}: " in rejection(first)


def test_a_chain_that_is_too_long_is_named(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.yaml", base=f"{number + 1}.yaml")
    last = write(tmp_path / "10.yaml", name="x")
    assert read_recipe(str(tmp_path / "3.yaml")) == {"name": "x"}
    message = rejection(str(tmp_path / "2.yaml"))
    assert "2.yaml -> " in message
    assert last in message
    assert "at most 8" in message


@pytest.mark.parametrize("base", [3, ["demo"], {"name": "demo"}, "a\nb", None])
def test_a_base_that_is_no_recipe_is_rejected(base: object, tmp_path: Path) -> None:
    message = rejection(write(tmp_path / "mine.yaml", base=base))
    assert "mine.yaml" in message
    assert repr(base) in message


def test_a_base_that_is_not_there_names_who_asked_for_it(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", base="dmeo")
    assert all(name in rejection(mine) for name in (mine, "'dmeo'", "sd15-full"))
    mine = write(tmp_path / "mine.yaml", base="gone.yaml")
    assert all(name in rejection(mine) for name in (mine, str(tmp_path / "gone.yaml")))


def test_text_cannot_name_a_file() -> None:
    message = rejection("base: other.yaml\nname: x\n")
    assert "'other.yaml'" in message
    assert "sd15-full" in message
