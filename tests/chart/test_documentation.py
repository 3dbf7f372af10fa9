"""README and schema of the chart are what its values.yaml says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).parents[2] / "charts"


@pytest.fixture(scope="module")
def document() -> ModuleType:
    spec = importlib.util.spec_from_file_location("document", CHARTS / "document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_from_the_values_is_current(document: ModuleType) -> None:
    for path, text in document.made().items():
        assert path.read_text("utf-8") == text, f"{path} is stale: run python charts/document.py"


def test_a_value_without_documentation_is_found(document: ModuleType) -> None:
    text = "# -- One.\none: 1\nsection:\n  # -- Two,\n  # and more.\n  two: {x: 1}\n  three: 3\n"
    known = document.documented(text)
    assert known == {("one",): "One.", ("section", "two"): "Two, and more."}
    assert list(document.undocumented(yaml.safe_load(text), known)) == ["section.three"]


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHARTS / "darkroom" / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHARTS / "darkroom" / "values.yaml").read_text("utf-8"))

    def compare(node: dict[str, Any], value: Any, path: str) -> None:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if "properties" in node:
            assert node["additionalProperties"] is False, path
            if isinstance(value, dict):
                assert set(node["properties"]) - {"global"} == set(value) | set() or path.startswith("resources"), path
                for name, below in value.items():
                    compare(node["properties"][name], below, name)

    compare(schema, values, "")


def test_the_definitions_are_strict_too() -> None:
    schema = json.loads((CHARTS / "darkroom" / "values.schema.json").read_text("utf-8"))
    for name, definition in schema["$defs"].items():
        if definition.get("type") == "object":
            assert "additionalProperties" in definition, name
