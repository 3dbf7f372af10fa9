"""Going on with a run: the same one if nothing that it computes changes, otherwise a new one from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.errors import ConfigError, NotFound
from components.model import checkpoints
from components.settings import flatten, override
from pipeline.config import RunConfig
from pipeline.local.runs import LocalRun

# What a run that continues another one may have otherwise; all else decides what the checkpoint means.
_CHANGEABLE = ("train.", "evaluate.", "publish.", "report.")


def settings_to_continue(run: LocalRun, overrides: Sequence[str]) -> RunConfig:
    """Return the settings with which a run goes on.

    The weights, the moments, the moving average and the place in the data are those of its newest checkpoint. The
    learning rate of each step is what a run of the new length would have there: warm-up is not repeated, and a schedule
    that falls is stretched to the new last step.

    Args:
        run: The run.
        overrides: ``section.key=value`` each.

    Raises:
        ConfigError: If its settings cannot be read, if something else than training is to change, or if it has no
            checkpoint to go on from.
    """
    values = _values(run)
    settings, changed = RunConfig.parse(values), override(values, _length(overrides))
    same = RunConfig.parse(
        {**changed, "train": {**changed["train"], "continued": values["train"].get("continued", {})}}
    )
    if same.run == settings.run:
        return same
    _check_changes(run, settings, same)
    newest = checkpoints.newest(run.folder)
    if newest is None:
        raise ConfigError(
            f"{run.name} has no checkpoint to go on from, and with other settings it is a new run: darkroom run "
            "--recipe … --set …"
        )
    # A number of epochs becomes one of steps when training starts, which then checks the same.
    if same.train.steps is not None and same.train.steps <= newest.step:
        raise ConfigError(
            f"train.steps ({same.train.steps}) must be above the {newest.step} steps that {run.name} has done; set how "
            "many steps there are to be in all"
        )
    continued = {"run": run.name, "step": newest.step, "checkpoint": newest.digest, "encoding": _encoding(run)}
    if not any(text.partition("=")[0].strip().startswith("launch.spot_drill") for text in overrides):
        changed = override(changed, ["launch.spot_drill={}"])  # its drill is over
    return RunConfig.parse(_continued(changed, continued))


def _length(overrides: Sequence[str]) -> list[str]:
    """Let a number of steps replace one of epochs, and the other way round."""
    named = {text.partition("=")[0].strip() for text in overrides}
    other = {"train.steps": "train.epochs=null", "train.epochs": "train.steps=null"}
    both = named >= set(other)
    return [*overrides, *(text for name, text in other.items() if name in named and not both)]


def _continued(values: Mapping[str, Any], continued: Mapping[str, Any]) -> dict[str, Any]:
    train = values.get("train")
    return {**values, "train": {**train, "continued": dict(continued)} if isinstance(train, dict) else train}


def _values(run: LocalRun) -> dict[str, Any]:
    try:
        values: dict[str, Any] = run.folder.read_json("config.json")
        RunConfig.parse(values)
    except NotFound:
        raise ConfigError(f"{run.name} in {run.workdir.url} has no config.json; it cannot be continued") from None
    except ConfigError as error:
        raise ConfigError(
            f"{run.name} was run by another release, whose settings this one does not have:\n{error}"
        ) from None
    return values


def _check_changes(run: LocalRun, before: RunConfig, after: RunConfig) -> None:
    """Check that only what may change does.

    Raises:
        ConfigError: If not.
    """
    old, new = (flatten(settings.without_operational()) for settings in (before, after))
    wrong = [name for name in {**old, **new} if old.get(name) != new.get(name) and not name.startswith(_CHANGEABLE)]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: a run that continues {run.name} keeps them; change train.…, evaluate.…, publish.… or "
            "report.…, or start a new run"
        )


def _encoding(run: LocalRun) -> str:
    try:
        return str(run.folder.read_json("steps/autoencoder.json")["result"]["encoding_key"])
    except (NotFound, KeyError, TypeError):
        raise ConfigError(
            f"{run.name} has no record of how its data were encoded (steps/autoencoder.json); run it again first: "
            f"darkroom resume {run.name}"
        ) from None
