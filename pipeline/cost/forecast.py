"""The arithmetic of training's cost: how long, how much, how often to save, when to stop. Pure: numbers in and out.

Nodes are reclaimed at random (a Poisson process), and losing one stops the whole gang. A reclaim with enough notice
costs a save and a start; one without also costs the steps since the last checkpoint. How often to save is the question
of Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (9), 1974, and of Daly, "A higher
order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (3), 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOUR = 3600.0
DAY = 24 * HOUR
# Per parameter: float32 weight, two moments of AdamW and a moving average, 4 bytes each.
CHECKPOINT_BYTES = 16
_TAR_BLOCK, _NPY_HEADER = 512, 128


@dataclass(frozen=True)
class Budget:
    """The most that a training may cost, and the reserve for its last save.

    The launcher checks it at every poll, and training stops in time to save. The budget is not exceeded if polls are
    on time and a save takes no longer than expected; if one poll is late, by at most the price of one poll.

    Attributes:
        usd: The budget in US dollars.
        poll_seconds: Time between two polls.
        save_seconds: From the request to stop until the nodes are released.
    """

    usd: float
    poll_seconds: float
    save_seconds: float

    def must_stop(self, spent: float, usd_per_hour: float) -> bool:
        """Return whether to stop now because stopping at the next poll could be too late.

        Args:
            spent: US dollars until now, including the attempt that is running.
            usd_per_hour: Price of all nodes together.
        """
        return spent + usd_per_hour * (self.poll_seconds + self.save_seconds) / HOUR >= self.usd


@dataclass(frozen=True)
class Interruptions:
    """How often the gang is interrupted, and how long each interruption takes; all in seconds.

    Attributes:
        between: Mean time between two interruptions of the whole gang; infinite for none.
        saved_share: Share of interruptions with enough notice to save first, 0..1.
        stall: How long training pauses for one checkpoint.
        save: From the notice until the state is saved.
        wait: From then until there are nodes again; not paid for.
        start: From having nodes until the first step: container image, model, data, checkpoint.
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
    """The expected time and cost of training.

    Attributes:
        hours: Wall clock from the first request for nodes to the last step.
        paid_hours: The part in which training has nodes.
        goodput: Share of the wall clock spent on steps that count.
        interruptions: How many are expected.
        usd: For all nodes, in US dollars.
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


def seconds_between_interruptions(per_node_day: float, nodes: int) -> float:
    """Return the mean seconds between two interruptions of a gang, given how often one node is interrupted per day."""
    return DAY / (per_node_day * nodes) if per_node_day > 0 else math.inf


def young(stall: float, between: float) -> float:
    """Return Young's interval between checkpoints in seconds of work: √(2·stall·between)."""
    return math.sqrt(2 * stall * between)


def daly(stall: float, between: float) -> float:
    """Return Daly's interval between checkpoints in seconds of work (his equation 37).

    If losses are rare, it is Young's interval less the stall. If a stall is at least twice the time between losses, no
    interval is good, and the result is the time between losses.
    """
    if stall >= 2 * between:
        return between
    ratio = stall / (2 * between)
    return young(stall, between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall


def running_seconds(work: float, interval: float, interruptions: Interruptions) -> float:
    """Return for how many seconds training is expected to have nodes; infinite if it never ends.

    Without notices it is Daly's complete model (his equation 20): losses come at random while training works, saves
    and starts. With notices, each interruption that is saved adds a save and a start, during which the next may come.

    Args:
        work: Seconds of optimizer steps.
        interval: Seconds of work between two checkpoints.
        interruptions: How often it is interrupted, and for how long.
    """
    start, losses = interruptions.start, interruptions.between_losses
    segment = interval + interruptions.stall
    if segment / losses > 500:  # e^500 tries for each segment never end, and would overflow
        return math.inf
    per_segment = segment
    if not math.isinf(losses):
        per_segment = losses * math.exp(start / losses) * math.expm1(segment / losses)
    saving_share = interruptions.saved_share * (interruptions.save + start) / interruptions.between
    return start + work / interval * per_segment / (1 - saving_share) if saving_share < 1 else math.inf


def forecast(
    work: float, images: float, interval: float, interruptions: Interruptions, nodes: int, usd_per_hour: float
) -> Forecast:
    """Return the expected time and cost of training.

    Args:
        work: Seconds of optimizer steps, all of them useful.
        images: Images trained on; an image counts each time it is used.
        interval: Seconds of work between two checkpoints.
        interruptions: How often it is interrupted, and for how long.
        nodes: Nodes in use at once.
        usd_per_hour: Price of one node, in US dollars per hour.
    """
    running = running_seconds(work, min(interval, work), interruptions)
    count = running / interruptions.between
    wall = running + interruptions.wait * (1 + count)
    usd = running / HOUR * nodes * usd_per_hour
    return Forecast(
        hours=wall / HOUR,
        paid_hours=running / HOUR,
        goodput=work / wall,
        interruptions=count,
        usd=usd,
        usd_per_useful_hour=usd / (work / HOUR),
        usd_per_1000_images=1000 * usd / images,
    )


def images_per_second(flops_per_image: float, peak_flops: float, gpus: int, mfu: float) -> float:
    """Return the speed of training.

    Args:
        flops_per_image: Forward and backward.
        peak_flops: Highest FLOP/s of one GPU.
        gpus: Number of GPUs.
        mfu: Share of the peak that training reaches, 0..1.
    """
    return peak_flops * gpus * mfu / flops_per_image


def sample_bytes(latent_channels: int, height: int, width: int, tokens: int, context: int, meta: int = 600) -> int:
    """Return how many bytes one encoded sample takes in a shard; `components.dataset.format` describes its parts.

    Args:
        latent_channels: Channels of the latent image; its mean and log-variance are stored.
        height: Height of the latent image, in latent pixels.
        width: Width of the latent image, in latent pixels.
        tokens: Length of the text embedding.
        context: Width of the text embedding.
        meta: Bytes of the sample's JSON.
    """
    moments = _NPY_HEADER + 2 * latent_channels * height * width * 2
    text = _NPY_HEADER + tokens * context * 2
    return sum(_TAR_BLOCK + math.ceil(size / _TAR_BLOCK) * _TAR_BLOCK for size in (moments, text, meta))


def kept_checkpoints(steps: int, every: int, keep: int, keep_every: int | None) -> int:
    """Return the largest number of checkpoints that exist at once: those kept, and the one being written."""
    total = math.ceil(steps / every)
    milestones = steps // keep_every if keep_every else 0
    return min(total, keep + milestones + 1)
