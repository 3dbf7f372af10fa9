"""Each step declares what the pipeline has to know of it, and takes its own sections from a run's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.caption.config import CaptionConfig
from components.command import load_step, load_steps, setting
from pipeline.config import resolve

COMPONENTS = Path(__file__).parents[2] / "components"


def test_every_folder_that_can_be_run_is_a_step() -> None:
    assert list(load_steps()) == sorted(path.parent.name for path in COMPONENTS.glob("*/__main__.py"))


def test_a_folder_that_is_no_step_has_no_declaration() -> None:
    with pytest.raises(ModuleNotFoundError):
        load_step("storage")


@pytest.mark.parametrize(
    ("step", "overrides", "uses_gpu"),
    [
        ("autoencoder", [], False),
        ("autoencoder", ["model.base=null", "latents.resolution=32"], True),
        ("caption", [], True),
        ("caption", ["caption.model=null", "caption.sources=[sidecar]"], False),
        ("latents", [], True),
        ("evaluate", [], True),
        ("publish", [], False),
        ("index", [], False),
    ],
)
def test_whether_a_step_uses_a_gpu_depends_on_its_settings(step: str, overrides: list[str], uses_gpu: bool) -> None:
    assert load_step(step).uses_gpu(resolve("sd15-full", overrides)) == uses_gpu


def test_a_step_takes_a_value_or_a_section_of_the_runs_settings() -> None:
    settings = resolve("demo")
    assert setting(settings, "index.held_out", float) == settings.index.held_out
    assert setting(settings, "caption", CaptionConfig) is settings.caption
    with pytest.raises(AssertionError, match=r"index\.held_out is float"):
        setting(settings, "index.held_out", str)
