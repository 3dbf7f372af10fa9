"""The command line: errors are reported in a few lines with the right exit code, before anything is started."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.storage.lease import PIPELINE, acquire
from components.storage.open import open_storage
from pipeline.cli import build_parser, main
from pipeline.command_line import Parser, wrapped
from pipeline.config import resolve
from tests import yaml_text

SOMEWHERE = str(Path(__file__).parent)
SMALL = str(Path(__file__).parents[1] / "recipes/small.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    return code, err


def test_config_prints_a_recipe_of_the_same_run(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert main(["config", "--recipe", "demo", "--set", "train.steps=450", "seed=3", "--source", "my place"]) == 0
    printed = capsys.readouterr().out
    (elsewhere / "mine.yaml").write_text(printed)
    config = resolve("mine.yaml")
    assert config.run == resolve("demo", ["train.steps=450", "seed=3"], "my place").run
    assert (config.train.steps, config.seed, config.ingest.source) == (450, 3, "my place")

    assert main(["config", "--recipe", "mine.yaml"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("quick_compiler")
def test_compile_writes_a_pipeline(elsewhere: Path) -> None:
    image = "registry.example/darkroom@sha256:" + 64 * "b"
    arguments = ["--output", "out.yaml", "--image", image, "--retries", "2", "--workdir", "s3://here/there"]
    assert main(["compile", "--recipe", "demo", *arguments]) == 0
    pipeline, _ = yaml_text.load_all((elsewhere / "out.yaml").read_text())
    assert pipeline["root"]["inputDefinitions"]["parameters"]["workdir"]["defaultValue"] == "s3://here/there"
    assert image in (elsewhere / "out.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--set", "train.stepz=3"], 78, ("train.stepz", "3", "train.steps?")),
        (["--set", "train.steps=many"], 78, ("train.steps", "'many'", "whole number")),
        (["--set", "train.steps=0"], 78, ("train.steps", "0", "greater than or equal to 1")),
        (["--set", "launch.spot_drill.step=999"], 78, ("launch.spot_drill.step (999)", "train.steps (8)")),
        (["--set", "train.steps"], 78, ("'train.steps'", "section.key=value")),
        (["--workdir", "memory://x"], 78, ("memory://x", "s3://")),
        (["--workdir", "ftp://x"], 78, ("'ftp://x'", "s3://")),
        (["--workdir", "w\udcff"], 78, ("--workdir 'w\\udcff'", "Unicode")),
        (["--workdir", "/dev/null"], 78, ("/dev/null", "folder")),
        (["--workdir", "/dev/null/work", "--source", SOMEWHERE], 74, ("/dev/null/work/runs/small-",)),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_started(
    arguments: list[str],
    code: int,
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    elsewhere: Path,
) -> None:
    exit_code, error = rejected(capsys, "run", "--recipe", SMALL, *arguments)
    assert exit_code == code
    assert all(part in error for part in parts)
    assert list(elsewhere.iterdir()) == []


def test_an_unknown_recipe_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = rejected(capsys, "config", "--recipe", "dmeo")
    assert code == 78
    assert "'dmeo'" in error
    assert "demo" in error


@pytest.mark.usefixtures("quick_compiler")
def test_an_output_that_cannot_be_written_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = rejected(capsys, "compile", "--output", "missing/out.yaml")
    assert code == 74
    assert "missing/out.yaml" in error


def test_a_message_shows_what_it_holds_and_breaks_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = rejected(capsys, "compile", "--output", "[red]\x1b[31m" + 100 * "x")
    assert code == 78
    assert "--output [red]\\x1b[31mxxx" in error
    assert error.count("\n") == 1


def test_a_run_is_not_run_twice_at_the_same_time(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    (elsewhere / "images").mkdir()
    run = resolve(SMALL).run
    folder = open_storage(str(elsewhere / "work/runs" / run))
    acquire(folder, PIPELINE, run)
    before = [entry.key for entry in folder.list()]
    code, error = rejected(capsys, "run", "--recipe", SMALL, "--workdir", "work")
    assert code == 74
    assert f"{run} is being run by process {os.getpid()} on " in error
    assert [entry.key for entry in folder.list()] == before


def test_a_missing_source_leaves_nothing_behind(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    code, error = rejected(capsys, "run", "--recipe", SMALL, "--workdir", "work", "--source", "nowhere")
    assert code == 65
    assert "nowhere does not exist" in error
    assert "--source" in error
    assert list(elsewhere.iterdir()) == []


def test_a_terminal_that_knows_only_ascii_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert main(["config", "--recipe", "demo", "--set", "publish.description='Größe 😀'"]) == 0
    assert b"Gr\\xf6\\xdfe \\U0001f600" in raw.getvalue()


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("run", "compile", "submit", "status", "logs", "stop", "schedule", "deploy"))


def exit_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command line that argparse ends; return the exit code and what was printed."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0), *capsys.readouterr()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = exit_of(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"darkroom \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rnu"], ("'rnu'", "did you mean run?", "darkroom --help")),
        (["dataset", "lz"], ("'lz'", "did you mean ls?", "darkroom dataset --help")),
        (["schedule", "zzzz"], ("'zzzz'", "ls, set, rm")),
        (["run", "--recip"], ("--recipe", "darkroom run --help")),
        ([], ("VERB",)),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(
    arguments: list[str], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = exit_of(capsys, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(part in error for part in parts)


def every_verb(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    """Yield the parsers of all verbs that do something."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for verb in group.choices.values():
            yield from every_verb(verb)
    if not groups:
        assert isinstance(parser, Parser)
        yield parser


def test_every_verb_has_examples_that_parse_and_fit_the_terminal() -> None:
    parser = build_parser()
    for verb in every_verb(parser):
        assert verb.examples, verb.prog
        for example in verb.examples:
            command, *arguments = shlex.split(example.partition(">")[0].replace("\\\n", ""))
            assert command == "darkroom"
            assert example.startswith(verb.prog)
            assert parser.parse_args(arguments).verb is verb.get_default("verb")
            assert all(len(row) <= 78 for row in example.split("\n"))


def test_the_settings_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--recipe", "demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"run": resolve("demo").run, "settings": resolve("demo").model_dump(mode="json")}


def test_an_error_is_broken_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/a/path/that/is/longer/than/the/terminal" * 3
    monkeypatch.setenv("COLUMNS", "80")
    lines = wrapped(f"error: {'word ' * 30}{path} end\nanother line").splitlines()
    assert [line for line in lines if len(line) > 80] == [f"  {path}"]
    assert lines[0] == "error: " + " ".join(["word"] * 14)
    assert lines[-1] == "another line"
