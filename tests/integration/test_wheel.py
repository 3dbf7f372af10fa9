"""The wheel works away from the checkout: everything that is needed at run time is in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("components", "pipeline")
STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/__main__.py"))


def files_of(folder: Path) -> set[str]:
    """Return what belongs to the packages: all but what Python leaves there."""
    paths = (path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths if path.parent.name != "__pycache__"}


def succeed(command: Sequence[str | Path], **options: Any) -> str:
    """Run a command that must not fail and return what it says."""
    ended = subprocess.run(list(command), capture_output=True, text=True, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return str(ended.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, which is built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("copy")  # without what earlier builds left: setuptools would pack it, too
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("built")
    succeed([sys.executable, "-m", "build", "--no-isolation", "--outdir", built, copy])
    (found,) = built.glob("*.whl")
    return found


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and an empty folder to work in."""

    folder: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the environment's programs and return what it says."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return succeed([self.folder / "bin" / program, *arguments], cwd=self.elsewhere, env={**kept, "COLUMNS": "100"})


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel, installed without a download: the dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    succeed([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel])
    site_packages = Path(succeed([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # A .pth file adds a folder but not what .pth files in that folder say, so a checkout installed there stays out.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "borrowed.pth").write_text("".join(f"{place}\n" for place in sorted(borrowed)))
    return Installation(folder, tmp_path_factory.mktemp("elsewhere"))


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == files_of(ROOT)
    assert "pipeline/recipes/demo.yaml" in names
    assert {"components/report/report.html", "components/html/page.css"} <= names
    assert {f"components/{step}/README.md" for step in STEPS} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in about)


def test_what_is_imported_comes_from_the_wheel(installed: Installation) -> None:
    modules = [name.removesuffix(".py").replace("/", ".") for name in sorted(files_of(ROOT)) if name.endswith(".py")]
    modules = [name.removesuffix(".__init__") for name in modules]
    assert "pipeline.cli" in modules
    program = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    for place in installed.run("python", "-c", program, *modules).splitlines():
        assert Path(place).is_relative_to(installed.folder)


def test_the_command_and_its_verbs_explain_themselves(installed: Installation) -> None:
    told = installed.run("darkroom", "--help")
    verbs = re.findall(r"^ {4}([a-z-]+) ", told, flags=re.MULTILINE)
    assert {"run", "config", "compile"} <= set(verbs)
    for verb in verbs:
        assert f"usage: darkroom {verb}" in installed.run("darkroom", verb, "--help")


@pytest.mark.parametrize("step", STEPS)
def test_every_step_explains_itself(installed: Installation, step: str) -> None:
    told = installed.run("python", "-m", f"components.{step}", "--help")
    assert f"python -m components.{step} --workdir " in told


def test_a_recipe_of_the_wheel_is_resolved_to_the_run_of_the_checkout(installed: Installation) -> None:
    from pipeline.config import resolve

    told = yaml.safe_load(installed.run("darkroom", "config", "--recipe", "demo", "--set", "seed=7"))
    assert told == resolve("demo", ["seed=7"]).model_dump(mode="json")


def test_the_pipeline_compiles_from_the_wheel(installed: Installation) -> None:
    installed.run("darkroom", "compile", "--recipe", "demo", "--output", "darkroom.yaml")
    compiled = list(yaml.safe_load_all((installed.elsewhere / "darkroom.yaml").read_text("utf-8")))
    assert compiled[0]["pipelineInfo"]["name"] == "darkroom"


def test_the_report_finds_its_page_and_its_styles_in_the_wheel(installed: Installation) -> None:
    installed.run("python", "-m", "components.report", "--workdir", "work", "--run", "nothing", "--status", "FAILED")
    page = (installed.elsewhere / "work" / "runs" / "nothing" / "report.html").read_text("utf-8")
    styles = (ROOT / "components/html/page.css").read_text("utf-8")
    first_rule = next(line for line in styles.splitlines() if line.endswith("{"))
    assert first_rule in page
