"""One run in one document: the settings of all components, composed and checked against one another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

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
from components.settings import Operational, Settings, override
from components.train.config import TrainConfig
from pipeline.launch.config import LaunchConfig
from pipeline.placement import PlacementConfig
from pipeline.pod import PodsConfig
from pipeline.recipe import dump, read_recipe, without_other_places

# What the dashboard's form shows in fields that nobody has filled in. None is empty: some releases of Kubeflow take an
# empty default for a parameter that is missing (kubeflow/pipelines#11515).
SOURCE_OF_RECIPE = "recipe"
NO_OVERRIDES = ["none"]


class RunConfig(Settings):
    """Everything that decides what a run does; the workdir is not part of it."""

    RENAMED: ClassVar[Mapping[str, str]] = {"example": "ingest.source"}

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="name of the run and of the model it publishes: a-z, 0-9 and '-', at most 40 characters",
    )
    description: Operational[str] = Field(
        "", max_length=200, description="what the recipe is for, in a line: the dashboard, --help and docs show it"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random number in the run")
    ingest: IngestConfig = Field(description="where the images are: ingest.source or ingest.sources")
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

    @property
    def caption_key(self) -> str:
        """Digest of all settings that decide which images of a source are trained on, and with which captions."""
        limits = self.ingest.limits.model_dump(mode="json")
        return short([self.caption.outcome, self.clean.outcome, limits])

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name == "base":
            raise ValueError("models/base holds the models that runs start from; choose another name")
        return name

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Find contradictions that would otherwise show after hours of work."""
        problems = list(self._contradictions())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        launch, train, architecture = self.launch, self.train, self.model.scratch.architecture
        drill = launch.spot_drill
        if drill.step is not None and train.steps is not None and drill.step >= train.steps:
            yield f"launch.spot_drill.step ({drill.step}) must be below train.steps ({train.steps})"
        if drill.step is not None and drill.rank >= train.ranks:
            yield f"launch.spot_drill.rank ({drill.rank}) must be below train.ranks ({train.ranks})"
        if drill.step is not None and launch.where != "local":
            yield f"launch.spot_drill.step needs launch.where local, not {launch.where}: on a cluster, delete a pod"
        if self.model.base is None and self.latents.resolution != architecture.resolution:
            yield (
                f"latents.resolution ({self.latents.resolution}) must be model.scratch.architecture.resolution "
                f"({architecture.resolution}), which the model is built for"
            )
        for name, metric in self.evaluate.deciding.items():
            if self.index.held_out == 0 and Need.HELD_OUT_IMAGES in metric.needs:
                yield (
                    f"index.held_out (0) leaves no held-out images for {name}, which decides whether the model is "
                    "published; hold some out, or set evaluate.promotion to other metrics"
                )

    @property
    def run(self) -> str:
        """The run's own name: equal settings continue the same run, also with another budget or on other nodes."""
        return f"{self.name}-{short(self.without_operational(), 8)}"


def resolve(recipe: str, overrides: Sequence[str] = (), source: str = "") -> RunConfig:
    """Return the settings of a run.

    Args:
        recipe: A recipe's name, file or text; see `pipeline.recipe.read_recipe`.
        overrides: ``section.key=value`` each.
        source: Where the images are; empty: what the recipe says.

    Raises:
        ConfigError: For an unknown recipe, and for wrong settings, all of them at once.
    """
    given = override({}, overrides)
    whole = override(without_other_places(read_recipe(recipe), given), overrides)
    if source:
        _check_places(source, given.get("ingest"))
        whole = without_other_places(whole, {"ingest": {"source": source}})
        section = whole.get("ingest")
        whole["ingest"] = {**(section if isinstance(section, dict) else {}), "source": source}
    return RunConfig.parse(whole)


def _check_places(source: str, given: Any) -> None:
    """Check that overrides do not say, too, where the images are: one of the two would be lost without a word."""
    names = [name for name in ("source", "sources") if isinstance(given, dict) and given.get(name, source) != source]
    if names:
        raise ConfigError(
            f"source {source!a} and the override ingest.{names[0]} both say where the images are; give one of them"
        )


def place_settings(places: Sequence[str]) -> tuple[str, list[str]]:
    """Return what `resolve` takes as the source, and as overrides, for the places that a person gave."""
    if len(places) < 2:
        return "".join(places), []
    return "", [f"ingest.sources={json.dumps(list(places))}"]


def resolve_parameters(recipe: str, source: str, overrides: Sequence[str], cluster: Sequence[str] = ()) -> RunConfig:
    """Return the settings of a run from the parameters of the pipeline, as the dashboard's form has them.

    Args:
        recipe: As for `resolve`.
        source: Where the images are; `SOURCE_OF_RECIPE` or empty: what the recipe says.
        overrides: ``section.key=value`` each; `NO_OVERRIDES` and empty ones change nothing.
        cluster: Settings of the cluster, which win over the recipe's; overrides win over them.

    Raises:
        ConfigError: As `resolve`.
    """
    given = [text for text in overrides if text.strip() and text not in NO_OVERRIDES]
    return resolve(recipe, [*cluster, *given], "" if source.strip() in ("", SOURCE_OF_RECIPE) else source)


def to_yaml(config: RunConfig) -> str:
    """Return the whole document, defaults included, as a recipe that gives the same run."""
    return dump(config.model_dump(mode="json"))
