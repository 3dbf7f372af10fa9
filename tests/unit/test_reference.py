"""The reference pages are what the parser and the settings say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config import resolve
from pipeline.reference import exit_codes, main, pages

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["cli.md", "settings.md"])
def test_a_page_is_current(page: str) -> None:
    assert (DOCS / page).read_text("utf-8") == pages()[page], "run `make docs`"


def test_every_setting_of_a_run_is_there() -> None:
    def names(values: dict[str, object], prefix: str) -> set[str]:
        paths = set()
        for name, value in values.items():
            inner = names(value, f"{prefix}{name}.") if isinstance(value, dict) else set()
            paths |= inner or {prefix + name}
        return paths

    told = set(re.findall(r"^\| `([\w.]+)` \|", pages()["settings.md"], re.MULTILINE))
    # The keys of a setting that is a mapping, such as evaluate.promotion.required, are no settings of their own.
    settings = names(resolve("demo").model_dump(mode="json"), "")
    assert {name for name in settings if name not in told and name.rpartition(".")[0] not in told} == set()


def test_every_exit_code_is_there() -> None:
    assert sorted(exit_codes()) == [0, 2, 65, 70, 71, 74, 75, 78, 124]
    assert "| 78 | The settings are wrong, so a retry cannot help |" in pages()["cli.md"]


def test_every_verb_is_there_with_its_options() -> None:
    text = pages()["cli.md"]
    for verb in ("run", "plan", "submit", "schedule set", "deploy"):
        assert f" `darkroom {verb}`" in text
    assert "| `--cron CRON` (required) |" in text
    assert "None" not in text


def test_the_pages_are_written_where_one_says(tmp_path: Path) -> None:
    assert main([str(tmp_path / "there")]) == 0
    assert {file.name: file.read_text("utf-8") for file in (tmp_path / "there").iterdir()} == pages()
