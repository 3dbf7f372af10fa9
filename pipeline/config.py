"""One run in one document: the settings of all components, composed and checked against one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from components.autoencoder.config import ModelConfig
from components.caption.config import CaptionConfig
from components.clean.config import CleanConfig
from components.digests import short
from components.errors import ConfigError
from components.evaluate.config import EvaluateConfig
from components.evaluate.metric import Need
from components.index.config import IndexConfig
from components.ingest.config import IngestConfig
from components.latents.config import LatentsConfig
from components.publish.config import PublishConfig
from components.report.config import ReportConfig
from components.settings import Operational, Settings, override, parse_values, read_values
from components.train.config import TrainConfig
from pipeline.launch.config import LaunchConfig
from pipeline.placement import PlacementConfig
from pipeline.pods_config import PodsConfig

# Where the chart mounts the recipes of a release, which win over those of the image.
RELEASE_RECIPES = Path("/etc/darkroom-recipes")


class RunConfig(Settings):
    """Everything that decides what a run does; where it keeps its things is not part of it."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="name of the run and of the model it publishes: a-z, 0-9 and '-', at most 40 characters",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random number in the run")
    example: Literal["digits"] | None = Field(
        None,
        description="images to write to the recipe's ingest.source before the run, where that folder does not exist",
    )
    ingest: IngestConfig = Field(description="where the images are: at least ingest.source")
    model: ModelConfig = ModelConfig()
    caption: CaptionConfig = CaptionConfig()
    clean: CleanConfig = CleanConfig()
    latents: LatentsConfig = LatentsConfig()
    index: IndexConfig = IndexConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    publish: PublishConfig = PublishConfig()
    report: ReportConfig = ReportConfig()
    launch: Operational[LaunchConfig] = LaunchConfig()
    placement: Operational[PlacementConfig] = PlacementConfig()
    pods: Operational[PodsConfig] = PodsConfig()

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name == "base":
            raise ValueError("models/base holds the models that runs start from; choose another name")
        return name

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Find what would otherwise show once hours of work are done."""
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        launch, train, made = self.launch, self.train, self.model.scratch.architecture
        drill = launch.spot_drill
        if drill.step is not None and drill.step >= train.steps:
            yield f"launch.spot_drill.step ({drill.step}) must be below train.steps ({train.steps})"
        if drill.rank >= train.ranks:
            yield f"launch.spot_drill.rank ({drill.rank}) must be below train.ranks ({train.ranks})"
        if drill.step is not None and launch.where != "local":
            yield f"launch.spot_drill.step needs launch.where local, not {launch.where}: on a cluster, delete a pod"
        if self.model.base is None and self.latents.resolution != made.resolution:
            yield (
                f"latents.resolution ({self.latents.resolution}) must be model.scratch.architecture.resolution "
                f"({made.resolution}), which the model is made for"
            )
        for name, metric in self.evaluate.deciding.items():
            if self.index.held_out == 0 and Need.HELD_OUT_IMAGES in metric.needs:
                yield (
                    f"index.held_out (0) leaves no held-out images for {name}, which decides whether the model is "
                    "published; hold some out, or set evaluate.promotion to other metrics"
                )

    @property
    def run(self) -> str:
        """The run's own name: equal settings continue the same run, with another budget or on other machines, too."""
        return f"{self.name}-{short(self.without_operational(), 8)}"


def recipes() -> list[str]:
    """Return the names of the recipes that come with Darkroom, and of those of the release where there is one."""
    return sorted({entry.name.removesuffix(".yaml") for entry in _recipe_files()})


def _recipe_files() -> Iterator[Traversable]:
    """Yield the files of all recipes, the release's last."""
    for folder in (resources.files("pipeline") / "recipes", RELEASE_RECIPES):
        if folder.is_dir():
            yield from (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(recipe: str) -> Mapping[str, Any]:
    """Return what a recipe says, before anything of it is checked.

    Args:
        recipe: Name of a recipe that comes with Darkroom or with the release, a YAML file, or a recipe's own text,
            which has several lines.

    Raises:
        ConfigError: Where there is none, or it is no mapping.
    """
    if "\n" in recipe:
        return parse_values(recipe, "the recipe's text")
    if recipe.endswith((".yaml", ".yml")):
        return read_values(Path(recipe))
    found = {entry.name: entry for entry in _recipe_files()}.get(f"{recipe}.yaml")
    if found is None:
        raise ConfigError(f"no recipe {recipe!r}: expected one of {', '.join(recipes())}, or a .yaml file")
    return parse_values(found.read_text("utf-8"), f"recipe {recipe}")


def portable(recipe: str) -> str:
    """Return a recipe as other machines can read it: a file's text in place of its name.

    Raises:
        ConfigError: Where the file cannot be read.
    """
    if "\n" in recipe or not recipe.endswith((".yaml", ".yml")):
        return recipe
    read_values(Path(recipe))
    return Path(recipe).read_text(encoding="utf-8").rstrip("\n") + "\n"


def resolve(recipe: str, overrides: Sequence[str] = (), source: str = "") -> RunConfig:
    """Return the settings of a run.

    Args:
        recipe: As `read_recipe` takes it.
        overrides: ``section.key=value`` each.
        source: Where the images are; empty leaves what the recipe says.

    Raises:
        ConfigError: For an unknown recipe, and for any wrong setting, with all that is wrong at once.
    """
    values = read_recipe(recipe)
    asked = override(values, overrides)
    if source:
        asked["ingest"] = {**(_section(asked, "ingest")), "source": source}
    moved = _section(asked, "ingest").get("source") != _section(values, "ingest").get("source")
    if moved and not any(text.partition("=")[0].strip() == "example" for text in overrides):
        asked["example"] = None  # belongs to the recipe's own source: a mistyped folder must not come to be full
    return RunConfig.parse(asked)


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def to_yaml(config: RunConfig) -> str:
    """Return the whole document, defaults included, as a recipe that gives the same run."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes text with line breaks: PyYAML's own choice takes some rare ones for ordinary ones."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        breaks = data.splitlines() not in ([], [data])
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_str)
