from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from components.errors import ConfigError
from components.settings import Operational, Settings, override, read_values


class Optimizer(Settings):
    RENAMED: ClassVar[Mapping[str, str]] = {"lr": "learning_rate"}

    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate")
    fused: Operational[bool] = Field(False, description="run the fused kernel")


class Run(Settings):
    RENAMED: ClassVar[Mapping[str, str]] = {"lr": "optimizer.learning_rate", "optimizer": "optimizer.learning_rate"}

    steps: int = Field(10, ge=1, description="optimizer steps in all")
    optimizer: Optimizer = Optimizer()
    fallback: Optimizer | None = None
    stages: tuple[Optimizer, ...] = ()


class Study(Settings):
    runs: tuple[Run, ...] = (Run(),)
    named: dict[str, Optimizer] = Field({"first": Optimizer()})
    ranks: Operational[int] = Field(1, ge=1, description="processes")
    logging: Operational[Optimizer] = Optimizer()


def rejected(values: dict[str, object], config: type[Settings] = Run) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(values)
    return str(caught.value)


def tells(message: str, *parts: str) -> bool:
    """Tell whether a message is one line that holds all of this, however it says it."""
    return "\n" not in message and all(part in message for part in parts)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"stpes": 3}, ("stpes", "3", "steps?")),
        ({"optimizer": {"learning_rte": 1}}, ("optimizer.learning_rte", "1", "optimizer.learning_rate?")),
        ({"fallback": {"learnin_rate": 1}}, ("fallback.learnin_rate", "1", "fallback.learning_rate?")),
        ({"stages": [{"learning_rate": 0.5}, {"learnin_rate": 1}]}, ("stages.1.learnin_rate", "learning_rate?")),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(values: dict[str, object], parts: tuple[str, ...]) -> None:
    assert tells(rejected(values), *parts)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    assert tells(rejected({"xyz": 1}), "xyz", "fallback, optimizer, stages, steps")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"steps": "many"}, ("steps", "'many'", "whole number")),
        ({"steps": 0}, ("steps", "0", "greater than or equal to 1", "(optimizer steps in all)")),
        ({"stages": [{"learning_rate": 2}]}, ("stages.0.learning_rate", "2", "less than or equal to 1", "peak")),
        ({"stages": [{}, 7]}, ("stages.1", "7")),
    ],
)
def test_a_wrong_value_is_named_with_what_was_allowed(values: dict[str, object], parts: tuple[str, ...]) -> None:
    assert tells(rejected(values), *parts)


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    assert len(rejected({"steps": 0, "optimizer": {"learning_rate": 2}}).splitlines()) == 2


@pytest.mark.parametrize(
    ("values", "name", "new_name"),
    [
        ({"runs": [{"lr": 3}]}, "runs.0.lr", "runs.0.optimizer.learning_rate"),
        ({"runs": [{"fallback": {"lr": 3}}]}, "runs.0.fallback.lr", "runs.0.fallback.learning_rate"),
        ({"runs": [{"optimizer": 3}]}, "runs.0.optimizer", "runs.0.optimizer.learning_rate"),
        ({"logging": {"lr": 3}}, "logging.lr", "logging.learning_rate"),
    ],
)
def test_a_renamed_setting_is_rejected_with_its_new_path(values: dict[str, object], name: str, new_name: str) -> None:
    message = rejected(values, Study)
    assert message.startswith(f"{name} is now {new_name}")
    assert "3" in message


def test_a_misspelt_old_name_is_answered_with_the_new_path() -> None:
    assert rejected({"runs": [{"lrr": 3}]}, Study).endswith("did you mean runs.0.optimizer.learning_rate?")


def test_a_renamed_setting_is_rejected_in_an_override_too() -> None:
    assert rejected(override({"steps": 3}, ["lr=1"])).startswith("lr is now optimizer.learning_rate")


def test_a_section_that_was_a_value_still_says_what_is_wrong_inside_it() -> None:
    assert rejected({"optimizer": {"learning_rate": 2}}).startswith("optimizer.learning_rate: 2 is not allowed")


def test_operational_settings_are_no_part_of_what_is_computed() -> None:
    decisive = {"learning_rate": 1e-4}
    assert Study().without_operational() == {
        "runs": [{"steps": 10, "optimizer": decisive, "fallback": None, "stages": []}],
        "named": {"first": decisive},
    }


def test_an_operational_setting_keeps_its_bounds() -> None:
    assert rejected({"ranks": 0}, Study).startswith("ranks: 0 is not allowed")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_rejected(value: float) -> None:
    assert "finite" in rejected({"optimizer": {"learning_rate": value}})


def test_override_reads_values_as_yaml_and_leaves_the_original_alone() -> None:
    values = {"optimizer": {"learning_rate": 1.0}}
    changed = override(values, ["optimizer.learning_rate=0.5", "names=[a, b]", "text='12'", "note=a=b"])
    assert changed == {"optimizer": {"learning_rate": 0.5}, "names": ["a", "b"], "text": "12", "note": "a=b"}
    assert values == {"optimizer": {"learning_rate": 1.0}}


def test_settings_never_change() -> None:
    run = Run()
    with pytest.raises(ValidationError):
        run.steps = 3  # type: ignore[misc]
    assert run.steps == 10


def test_a_default_is_held_to_the_same_bounds() -> None:
    class Wrong(Settings):
        steps: int = Field(0, ge=1)

    with pytest.raises(ConfigError, match=r"steps.* 0 "):
        Wrong.parse({})


def test_a_name_may_stand_between_blanks() -> None:
    assert override({}, [" steps =3"]) == {"steps": 3}


def test_override_leaves_what_lists_hold_alone() -> None:
    values = {"stages": [{"learning_rate": 0.5}]}
    override(values, ["steps=3"])["stages"][0]["learning_rate"] = 1
    assert values == {"stages": [{"learning_rate": 0.5}]}


def test_override_makes_sections_that_were_left_to_their_defaults() -> None:
    assert override({"optimizer": None}, ["optimizer.learning_rate=1"]) == {"optimizer": {"learning_rate": 1}}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps", "section.key=value"),
        ("=3", "section.key=value"),
        ("a..b=3", "section.key=value"),
        ("steps=[1", "YAML"),
        ("optimizer.steps.deeper=1", "optimizer.steps"),
    ],
)
def test_a_malformed_override_is_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({"optimizer": {"steps": 3}}, [text])
    assert tells(str(caught.value).replace("\n", " "), repr(text), part)


def test_a_file_that_is_no_mapping_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(ConfigError, match=r"recipe\.yaml.*No such file"):
        read_values(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml.* list"):
        read_values(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"recipe\.yaml.* YAML"):
        read_values(path)


def test_override_changes_one_place_of_what_an_anchor_put_in_several(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("optimizer: &same {learning_rate: 0.5}\nfallback: *same\n")
    run = Run.parse(override(read_values(file), ["optimizer.learning_rate=0.25"]))
    assert run.optimizer.learning_rate == 0.25
    assert run.fallback == Optimizer(learning_rate=0.5)


def test_a_date_is_text(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for date in ("2026-11-20", "2026-13-20"):
        file.write_text(f"steps: {date}\n")
        assert read_values(file) == override({}, [f"steps={date}"]) == {"steps": date}
        with pytest.raises(ConfigError, match=rf"steps: '{date}' is not allowed: expected a whole number"):
            Run.parse(read_values(file))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": True}, "steps: true is not allowed: expected a whole number"),
        ({"steps": "5"}, "steps: '5' is not allowed: expected a whole number, without quotes"),
        ({"steps": 5.0}, "steps: 5.0 is not allowed: expected a whole number"),
        ({"steps": None}, "steps: null is not allowed: expected a whole number"),
        ({"optimizer": {"learning_rate": True}}, "optimizer.learning_rate: true is not allowed: expected a number"),
        ({"optimizer": {"fused": 1}}, "optimizer.fused: 1 is not allowed: expected true or false"),
        ({"optimizer": {"fused": "yes"}}, "optimizer.fused: 'yes' is not allowed: expected true or false, without"),
        ({"fallback": [1]}, "fallback: [1] is not allowed: expected a section"),
        ({"stages": {"a": 1}}, "stages: {'a': 1} is not allowed: expected a list"),
        ({"title": 5}, "title: 5 is not allowed: expected text; put quotes around it"),
        ({"title": {"x": None}}, "title: {'x': None} is not allowed: expected text; put quotes around text with"),
        ({"stage": True}, "stage: true is not allowed: expected 0 or 1"),
        ({"stage": 1.0}, "stage: 1.0 is not allowed: expected 0 or 1"),
        ({"title": "x" * 1000}, f"title: '{'x' * 199}… is not allowed: "),
    ],
)
def test_a_value_is_only_what_it_says_it_is(values: dict[str, object], expected: str) -> None:
    class Strict(Run):
        title: str = Field("", max_length=500)
        stage: Literal[0, 1] = 0

    assert rejected(values, Strict).startswith(expected)


def test_one_value_is_a_list_of_one() -> None:
    class Lists(Settings):
        names: tuple[str, ...] = ()
        sizes: tuple[int, ...] = ()
        pair: tuple[int, int] = (1, 2)

    lists = Lists.parse({"names": "a", "sizes": 3, "pair": [3, 4]})
    assert (lists.names, lists.sizes, lists.pair) == (("a",), (3,), (3, 4))
    assert rejected({"names": 3}, Lists).startswith("names.0: 3 is not allowed: expected text")
    assert rejected({"pair": 3}, Lists).startswith("pair: 3 is not allowed: expected a list")


def test_values_that_contradict_each_other_have_their_whole_names() -> None:
    class Part(Settings):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _agree(self) -> Part:
            if self.low > self.high:
                raise ValueError(f".low ({self.low}) must not be above .high ({self.high}), such as 0.5 or '.x'")
            return self

    class Whole(Settings):
        part: Part = Part()
        parts: tuple[Part, ...] = ()

    expected = "{0}low (3) must not be above {0}high (1), such as 0.5 or '.x'"
    assert rejected({"low": 3}, Part) == expected.format("")
    assert rejected({"part": {"low": 3}}, Whole) == expected.format("part.")
    assert rejected({"parts": [{}, {"low": 3}]}, Whole) == expected.format("parts.1.")
