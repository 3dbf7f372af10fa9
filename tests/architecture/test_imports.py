"""Who may import whom, and what loads without the libraries that take seconds and a GPU machine."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/__main__.py"))
HEAVY = ("torch", "diffusers", "transformers", "deepspeed")


def first_to_load(*names: str, then: str = "") -> dict[str, str]:
    """Import modules in a fresh interpreter; return which heavy package came with which of them."""
    program = f"""
import importlib, json, sys
culprits = {{}}
def blame(name):
    for package in {HEAVY!r}:
        if package in sys.modules:
            culprits.setdefault(package, name)
for name in {names!r}:
    importlib.import_module(name)
    blame(name)
{then}
blame("what ran then")
print(json.dumps(culprits))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    culprits: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return culprits


def test_imports_keep_to_the_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_contracts_know_every_step() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    rooms = contracts["importlinter:contract:components"]["layers"].strip().splitlines()
    assert rooms[0].split(" | ") == STEPS, "steps stand on top of the nouns, and no step imports another"


def test_the_dag_compiles_without_loading_a_model_library(tmp_path: Path) -> None:
    arguments = ["compile", "--output", str(tmp_path / "darkroom.yaml")]
    compiled = f"assert sys.modules['pipeline.cli'].main({arguments!r}) == 0"
    assert first_to_load("pipeline.cli", "pipeline.dag", then=compiled) == {}


def test_settings_resolve_without_loading_a_model_library() -> None:
    configs = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("components/*/config.py")]
    resolved = "sys.modules['pipeline.config'].resolve('demo')"
    assert first_to_load(*sorted(configs), "pipeline.config", then=resolved) == {}


def test_help_of_every_step_appears_without_loading_a_model_library() -> None:
    helps = """
for name in [name for name in sys.modules if name.endswith('.__main__')]:
    try:
        sys.modules[name].main(['--help'])
    except SystemExit as end:
        assert end.code == 0
    blame(name)
"""
    assert first_to_load(*(f"components.{step}.__main__" for step in STEPS), then=helps) == {}
