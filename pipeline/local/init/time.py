"""How long a run takes on this machine, roughly: measured with a few steps, or computed from a GPU's peak."""

from __future__ import annotations

from components.html.formatting import SPACE, duration
from components.model.gpu_peaks import peak_flops
from components.model.unet_shape import TRAINING_OVER_FORWARD
from pipeline.config import RunConfig
from pipeline.cost.history import model_size
from pipeline.cost.plan import Assumptions
from pipeline.local.init.machine import Machine

# What a step of training costs besides the UNet's own work (text, noise, optimizer, moving average, exchange), as a
# factor, and what the other steps take: both seen in runs on two cores.
_OVERHEAD = 1.5
_OTHER_STEPS_SECONDS = 60.0


def expected_time(config: RunConfig, machine: Machine, steps: int) -> str:
    """Return how long a run takes here, in words that say how that is known.

    Args:
        config: The run.
        machine: This machine.
        steps: Optimizer steps of its training.
    """
    seconds = _measured(config, steps) if config.model.base is None else _computed(config, machine, steps)
    if seconds is None:
        return "how long the run takes here is not known: this GPU is in no table"
    how = "measured with a few steps" if config.model.base is None else "computed from the GPU's peak, not measured"
    whole = 60 * max(1, round(seconds / 60))
    return f"the whole run takes about {duration(whole)} on this machine ({how})".replace(SPACE, " ")


def _measured(config: RunConfig, steps: int) -> float:
    from components.autoencoder.speed import measure_speed

    train, scratch = config.train, config.model.scratch
    speed = measure_speed(scratch, min(train.micro_batch, train.global_batch))
    unet = steps * train.global_batch * speed.unet_image / train.ranks * _OVERHEAD
    return scratch.training.steps * speed.autoencoder_step + unet + _OTHER_STEPS_SECONDS


def _computed(config: RunConfig, machine: Machine, steps: int) -> float | None:
    model = model_size(config)
    peak = peak_flops(machine.gpus[0].name, config.train.precision, tf32=True) if machine.gpus else None
    if model is None or peak is None:
        return None
    flops = steps * config.train.global_batch * TRAINING_OVER_FORWARD * model.forward_flops()
    return flops / (peak * Assumptions().mfu * config.train.ranks) + _OTHER_STEPS_SECONDS
