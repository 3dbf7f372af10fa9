"""One run in one document: the settings of all components, composed and checked against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from components.autoencoder.config import ModelConfig
from components.caption.config import CaptionConfig
from components.digests import short
from components.errors import ConfigError
from components.evaluate.config import EvaluateConfig
from components.index.config import IndexConfig
from components.ingest.config import IngestConfig
from components.latents.config import LatentsConfig
from components.publish.config import PublishConfig
from components.report.config import ReportConfig
from components.settings import Settings, override, read_values
from components.train.config import TrainConfig
from pipeline.launch.config import LaunchConfig


class RunConfig(Settings):
    """Everything that decides what a run does; where it keeps its things is not part of it."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="name of the run and of the model it publishes: a-z, 0-9 and '-', at most 40 characters",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random number in the run")
    example: Literal["digits"] | None = Field(
        None, description="images to write to ingest.source before the run, where that folder does not exist yet"
    )
    ingest: IngestConfig
    model: ModelConfig = ModelConfig()
    caption: CaptionConfig = CaptionConfig()
    latents: LatentsConfig = LatentsConfig()
    index: IndexConfig = IndexConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    publish: PublishConfig = PublishConfig()
    report: ReportConfig = ReportConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        drill = self.launch.spot_drill_step
        if drill is not None and drill >= self.train.steps:
            raise ValueError(f"launch.spot_drill_step ({drill}) must be below train.steps ({self.train.steps})")
        if self.launch.spot_drill_rank >= self.train.ranks:
            raise ValueError(
                f"launch.spot_drill_rank ({self.launch.spot_drill_rank}) must be below train.ranks ({self.train.ranks})"
            )
        return self

    @property
    def run(self) -> str:
        """The run's own name: equal settings continue the same run."""
        return f"{self.name}-{short(self.model_dump(mode='json'), 8)}"


def recipes() -> list[str]:
    """Return the names of the recipes that come with Darkroom."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def resolve(recipe: str, overrides: Sequence[str] = (), source: str = "") -> RunConfig:
    """Return the settings of a run.

    Args:
        recipe: Name of a recipe that comes with Darkroom, or a YAML file.
        overrides: ``section.key=value`` each.
        source: Where the images are; empty leaves what the recipe says.

    Raises:
        ConfigError: For an unknown recipe, and for any wrong setting, with all that is wrong at once.
    """
    values: Mapping[str, Any]
    if recipe in recipes():
        values = yaml.safe_load((resources.files("pipeline") / "recipes" / f"{recipe}.yaml").read_text("utf-8"))
    elif recipe.endswith((".yaml", ".yml")):
        values = read_values(Path(recipe))
    else:
        raise ConfigError(f"no recipe {recipe!r}: expected one of {', '.join(recipes())}, or a .yaml file")
    values = override(values, overrides)
    if source:
        values = {**values, "ingest": {**(values.get("ingest") or {}), "source": source}}
    return RunConfig.parse(values)


def to_yaml(config: RunConfig) -> str:
    """Return the whole document, defaults included, as a recipe that gives the same run."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
