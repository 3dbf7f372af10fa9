"""``darkroom init`` writes a recipe that runs as it is, and never over a file; a run without a recipe keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from components.errors import ConfigError, DataError
from components.storage.open import open_storage
from pipeline.cli import main
from pipeline.config import resolve
from pipeline.local.init.verb import recipe_name, recipe_of_sources
from tests.drawn_photos import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("init") / "Our Photos"
    write_photos(folder, per_scene=2)
    return folder


def test_init_writes_a_recipe_and_says_what_it_saw(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(photos)]) == 0
    config = resolve("our-photos.yaml")
    assert (config.name, config.ingest.source) == ("our-photos", str(photos))
    output = capsys.readouterr().out
    words = " ".join(output.split())
    for word in ("12 in", "12 JPEG", "1 × truncated", "beach", "no GPU", "darkroom run"):
        assert word in words
    assert all(len(line) <= 80 for line in output.splitlines() if str(tmp_path) not in line)
    assert "measured" in Path("our-photos.yaml").read_text()


def test_an_existing_file_is_not_written_over(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    assert main(["init", str(photos), "-o", str(mine)]) == ConfigError.exit_code
    assert (mine.read_text(), str(mine) in capsys.readouterr().err) == ("mine", True)


def test_a_wrong_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.yaml"
    assert main(["init", str(tmp_path / "nowhere"), "-o", str(output)]) == DataError.exit_code
    assert "nowhere" in capsys.readouterr().err
    assert not output.exists()


def test_a_run_needs_a_recipe_or_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert all(word in error for word in ("--source", "--recipe", "darkroom init"))


def test_a_run_of_a_source_alone_keeps_its_recipe(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = open_storage(str(tmp_path))
    console = Console(highlight=False)
    first = recipe_of_sources([str(photos)], workdir, console)
    assert resolve(first).ingest.source == str(photos)
    (file,) = (tmp_path / "recipes").iterdir()
    assert file.name.startswith("our-photos-")
    assert str(file) in capsys.readouterr().out.replace("\n", "")

    file.write_text(first.replace("name: our-photos", "name: mine"))
    assert resolve(recipe_of_sources([str(photos)], workdir, console)).name == "mine", "a person may change it"
    assert "no --recipe" in capsys.readouterr().out


@pytest.mark.parametrize(("place", "name"), [("base", "base-images"), ("!!!", "images"), ("Über Bilder", "ber-bilder")])
def test_a_name_is_made_from_any_place(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir()
    assert recipe_name([str(tmp_path / place)]) == name
