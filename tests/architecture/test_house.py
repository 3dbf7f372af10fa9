"""The shape of the house: every step looks alike, files stay short, every setting says what it is."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from components.settings import Settings

ROOT = Path(__file__).parents[2]
STEPS = sorted({path.parent.name for path in ROOT.glob("components/*/*.py")})
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("components/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
MOST_LINES = {"sources": 400, "tests": 450, "__main__.py": 80}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_the_shape_of_a_step(step: str) -> None:
    folder = ROOT / "components" / step
    assert {"__init__.py", "__main__.py", "config.py", "README.md"} <= {path.name for path in folder.iterdir()}
    assert (folder / "README.md").read_text("utf-8").startswith(f"# {step}")


@pytest.mark.parametrize("step", STEPS)
def test_the_docstring_of_a_step_tells_how_to_run_it(step: str) -> None:
    main = importlib.import_module(f"components.{step}.__main__")
    assert f"python -m components.{step} --workdir " in (main.__doc__ or "")
    assert callable(main.main)


def test_init_files_are_empty() -> None:
    assert [path for path in SOURCES if path.name == "__init__.py" and path.stat().st_size] == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    most = MOST_LINES.get(path.name, MOST_LINES["tests" if path in TESTS else "sources"])
    assert len(path.read_text("utf-8").splitlines()) <= most, f"more than {most} lines: what are its two halves?"


def test_modules_are_named_for_what_they_hold() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "base_classes"}
    assert [path for path in SOURCES if vague & {path.stem, path.parent.name}] == []


def every_settings_class() -> list[type[Settings]]:
    for path in [*ROOT.glob("components/*/config.py"), *ROOT.glob("pipeline/**/config.py")]:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))

    def below(parent: type[Settings]) -> Iterator[type[Settings]]:
        for child in parent.__subclasses__():
            yield child
            yield from below(child)

    ours = (found for found in below(Settings) if found.__module__.split(".")[0] in ("pipeline", "components"))
    return sorted(ours, key=lambda found: found.__qualname__)


def alternatives(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types of a field that takes one of several, such as a number or nothing."""
    one_of_several = isinstance(field.annotation, UnionType) or get_origin(field.annotation) is Union
    return get_args(field.annotation) if one_of_several else ()


def is_section(field: FieldInfo) -> bool:
    """Tell whether a field holds settings of its own."""
    kinds = (field.annotation, *alternatives(field))
    return any(isinstance(kind, type) and issubclass(kind, Settings) for kind in kinds)


@pytest.mark.parametrize("settings", every_settings_class(), ids=lambda settings: str(settings.__qualname__))
def test_a_setting_says_what_it_is(settings: type[Settings]) -> None:
    assert "__doc__" in vars(settings), "what the section is about"
    for name, field in settings.model_fields.items():
        if not is_section(field):
            assert (field.description or "").strip(), f"{name} needs a description, with its unit"


@pytest.mark.parametrize("settings", every_settings_class(), ids=lambda settings: str(settings.__qualname__))
def test_a_number_has_bounds(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        if any(kind in (field.annotation, *alternatives(field)) for kind in (int, float)):
            assert field.metadata, f"{name}: a number that makes no sense must fail before any GPU is asked for"


def test_the_changelog_has_a_place_for_what_is_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    first = re.search(r"^## (.+)$", text, flags=re.MULTILINE)
    assert first is not None
    assert first.group(1) == "[Unreleased]"


def test_no_test_replaces_what_it_tests() -> None:
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"unittest.mock", "mock", "pytest_mock"} & set(names), f"{path}: use a real thing, small"
