"""The arithmetic of what training costs: how long, how much, how often to save, when to stop. Pure: numbers in and out.

Machines are reclaimed at random (a Poisson process), and one that goes stops the whole gang. A reclaim that comes with
enough notice costs a save and a start; one without costs the steps since the last checkpoint as well. How often to save
is the question of Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (9), 1974, and of
Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (3), 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR = 3600.0
DAY = 24 * HOUR
# float32 weights, two moments of AdamW and a moving average: 4 bytes each.
CHECKPOINT_BYTES = 16
_TAR_BLOCK, _NPY_HEADER = 512, 128


@dataclass(frozen=True)
class Budget:
    """A sum that training must not exceed, and what has to be kept back for its end.

    Asked at every poll, it stops training in time for the save: the sum is not exceeded while a poll comes when it
    should and a save takes no longer than thought; by one poll's price at most where one poll is late.

    Attributes:
        usd: The sum, in US dollars.
        poll_seconds: Between two questions.
        save_seconds: From being asked to stop until the machines are given back.
    """

    usd: float
    poll_seconds: float
    save_seconds: float

    def must_stop(self, spent: float, usd_per_hour: float) -> bool:
        """Tell whether to stop now, since stopping at the next poll could be too late.

        Args:
            spent: In US dollars, what runs now included.
            usd_per_hour: What all machines together cost now.
        """
        return spent + usd_per_hour * (self.poll_seconds + self.save_seconds) / HOUR >= self.usd


@dataclass(frozen=True)
class Interruptions:
    """How often the gang is interrupted, and what each time costs; all in seconds.

    Attributes:
        between: Mean time between two interruptions of the whole gang; infinite for none.
        saved_share: Share of them that come with enough notice to save first, 0..1.
        stall: How long training stands still for one checkpoint.
        save: From the notice until the state is saved.
        wait: From then until machines are given again; not paid for.
        start: From machines given until the first step: image, model, data, checkpoint.
    """

    between: float
    saved_share: float
    stall: float
    save: float
    wait: float
    start: float

    @property
    def between_losses(self) -> float:
        """Mean time between two interruptions that lose steps."""
        return self.between / (1 - self.saved_share) if self.saved_share < 1 else math.inf


@dataclass(frozen=True)
class Forecast:
    """What training is expected to take.

    Attributes:
        hours: Wall clock from the first request for machines to the last step.
        paid_hours: The part in which machines are held.
        goodput: Share of the wall clock spent on steps that count.
        interruptions: How many are expected.
        usd: For all machines, in US dollars.
        usd_per_useful_hour: Per hour of steps that count.
        usd_per_1000_images: Per thousand images trained on.
    """

    hours: float
    paid_hours: float
    goodput: float
    interruptions: float
    usd: float
    usd_per_useful_hour: float
    usd_per_1000_images: float


def gang_between(per_node_day: float, nodes: int) -> float:
    """Return the mean seconds between two interruptions of a gang, from how often one node is interrupted per day."""
    return DAY / (per_node_day * nodes) if per_node_day > 0 else math.inf


def young(stall: float, between: float) -> float:
    """Return Young's interval between checkpoints in seconds of work: √(2·stall·between)."""
    return math.sqrt(2 * stall * between)


def daly(stall: float, between: float) -> float:
    """Return Daly's interval between checkpoints in seconds of work (his equation 37).

    Where losses are rare it is Young's less the stall; where a stall takes as long as two times between losses, no
    interval is good, and it is the time between losses.
    """
    if stall >= 2 * between:
        return between
    ratio = stall / (2 * between)
    return young(stall, between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def running_seconds(work: float, interval: float, how: Interruptions) -> float:
    """Return the expected seconds for which machines are held until some work is done; infinite where it never is.

    Without notices it is Daly's complete model (his equation 20): losses come at random while training works, saves
    and starts. With them, each one that is saved adds a save and a start, in which the next may come.

    Args:
        work: Seconds of optimizer steps.
        interval: Seconds of work between two checkpoints.
        how: What interrupts it.
    """
    segment, losses = interval + how.stall, how.between_losses
    if segment / losses > 500:  # e^500 tries for each segment are never done, and would overflow
        return math.inf
    per_segment = segment
    if not math.isinf(losses):
        per_segment = losses * math.exp(how.start / losses) * math.expm1(segment / losses)
    held_up = how.saved_share * (how.save + how.start) / how.between
    return how.start + work / interval * per_segment / (1 - held_up) if held_up < 1 else math.inf


def forecast(
    work: float, images: float, interval: float, how: Interruptions, nodes: int, usd_per_hour: float
) -> Forecast:
    """Return what training is expected to take.

    Args:
        work: Seconds of optimizer steps, all of them useful.
        images: Images trained on, each time one is seen.
        interval: Seconds of work between two checkpoints.
        how: What interrupts it.
        nodes: Machines held at once.
        usd_per_hour: What one machine costs, in US dollars per hour.
    """
    running = running_seconds(work, min(interval, work), how)
    interruptions = running / how.between
    wall = running + how.wait * (1 + interruptions)
    usd = running / HOUR * nodes * usd_per_hour
    return Forecast(
        hours=wall / HOUR,
        paid_hours=running / HOUR,
        goodput=work / wall,
        interruptions=interruptions,
        usd=usd,
        usd_per_useful_hour=usd / (work / HOUR),
        usd_per_1000_images=1000 * usd / images,
    )


def images_per_second(flops_per_image: float, peak_flops: float, gpus: int, mfu: float) -> float:
    """Return the speed of training.

    Args:
        flops_per_image: Forward and backward.
        peak_flops: FLOP/s of one GPU at most.
        gpus: How many there are.
        mfu: Share of the peak that is reached, 0..1.
    """
    return peak_flops * gpus * mfu / flops_per_image


def sample_bytes(latent_channels: int, height: int, width: int, tokens: int, context: int, meta: int = 600) -> int:
    """Return how many bytes one encoded sample takes in a shard: `components.dataset.format` says what it is made of.

    Args:
        latent_channels: Channels of the latent image; its mean and log-variance are kept.
        height: The latent image's, in latent pixels.
        width: Likewise.
        tokens: Length of the text embedding.
        context: Width of the text embedding.
        meta: Bytes of the JSON that goes with it.
    """
    moments = _NPY_HEADER + 2 * latent_channels * height * width * 2
    text = _NPY_HEADER + tokens * context * 2
    return sum(_TAR_BLOCK + math.ceil(size / _TAR_BLOCK) * _TAR_BLOCK for size in (moments, text, meta))


def kept_checkpoints(steps: int, every: int, keep: int, keep_every: int | None) -> int:
    """Return how many checkpoints are in the store at once, at most: those kept, and the one being written."""
    made = math.ceil(steps / every)
    milestones = steps // keep_every if keep_every else 0
    return min(made, keep + milestones + 1)
