"""The shape of the house: every step looks alike, files stay short, every setting says what it is."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from components.settings import Settings

ROOT = Path(__file__).parents[2]
STEPS = sorted(path.parent for path in ROOT.glob("components/*/__main__.py"))
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("components/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
MOST_ENTRIES = 16
# What every step has.
SHAPE = {"README.md", "config.py", "declaration.py"}
MOST_LINES = {"sources": 400, "tests": 450, "__main__.py": 80}
# The ground that everything stands on; whatever else is in components/ has a folder.
GROUND = {"command.py", "digests.py", "errors.py", "progress.py", "rng.py", "settings.py", "yaml_loader.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_step_has_the_shape_of_a_step() -> None:
    for step in STEPS:
        files = {path.name for path in step.iterdir()}
        assert {"__init__.py", "__main__.py", "config.py", "declaration.py", "README.md"} <= files, name_of(step)
        assert (step / "README.md").read_text("utf-8").startswith(f"# {step.name}"), name_of(step)


def test_the_docstring_of_every_step_tells_how_to_run_it() -> None:
    for step in STEPS:
        main = importlib.import_module(f"components.{step.name}.__main__")
        assert f"python -m components.{step.name} --workdir " in (main.__doc__ or "")
        assert callable(main.main)


def test_only_the_ground_lies_loose_in_components() -> None:
    assert {path.name for path in ROOT.glob("components/*.py")} == GROUND | {"__init__.py"}


def test_a_folder_can_be_looked_over_at_a_glance() -> None:
    folders = {path.parent for path in SOURCES}
    entries = {
        name_of(folder): {path.name for path in folder.iterdir() if not path.name.startswith("__")} - SHAPE
        for folder in folders - {ROOT / "components"}
    }
    assert {folder: len(names) for folder, names in entries.items() if len(names) > MOST_ENTRIES} == {}


def test_unit_tests_lie_where_their_source_does() -> None:
    rooms = {Path(*path.parent.relative_to(ROOT).parts[1:]) for path in SOURCES}
    tested = {path.parent.relative_to(ROOT / "tests/unit") for path in ROOT.glob("tests/unit/**/test_*.py")}
    assert tested <= rooms


def test_init_files_are_empty() -> None:
    assert [name_of(path) for path in SOURCES if path.name == "__init__.py" and path.stat().st_size] == []


def test_a_file_can_be_read_in_one_sitting() -> None:
    def most(path: Path) -> int:
        return MOST_LINES.get(path.name, MOST_LINES["tests" if path in TESTS else "sources"])

    lines = {path: len(path.read_text("utf-8").splitlines()) for path in [*SOURCES, *TESTS]}
    assert {name_of(path): count for path, count in lines.items() if count > most(path)} == {}, (
        "what are its two halves?"
    )


def test_modules_are_named_for_what_they_hold() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "base_classes"}
    assert [name_of(path) for path in SOURCES if vague & {path.stem, path.parent.name}] == []


def test_a_class_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text("utf-8")).body:
            for name in class_names(node):
                places.setdefault(name, []).append(name_of(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def class_names(node: ast.stmt) -> list[str]:
    """Return the class or type alias that a statement defines."""
    match node:
        case ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name] if re.fullmatch(r"[A-Z][a-z]\w*", name) else []
    return []


def every_settings_class() -> list[type[Settings]]:
    for path in [*ROOT.glob("components/**/config.py"), *ROOT.glob("pipeline/**/config.py")]:
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


def test_every_setting_says_what_it_is() -> None:
    for settings in every_settings_class():
        assert "__doc__" in vars(settings), f"{settings.__qualname__}: what is the section about?"
        for name, field in settings.model_fields.items():
            described = is_section(field) or (field.description or "").strip()
            assert described, f"{settings.__qualname__}.{name} needs a description, with its unit"


def test_every_number_has_bounds() -> None:
    for settings in every_settings_class():
        for name, field in settings.model_fields.items():
            if any(kind in (field.annotation, *alternatives(field)) for kind in (int, float)):
                lower = any(isinstance(bound, Ge | Gt) for bound in field.metadata)
                upper = any(isinstance(bound, Le | Lt) for bound in field.metadata)
                which = f"{settings.__qualname__}.{name} needs a lower and an upper bound"
                assert (lower, upper) == (True, True), f"{which}: a wrong number must fail before any GPU"


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
