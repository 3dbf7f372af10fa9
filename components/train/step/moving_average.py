"""The decay of the moving average of the weights, and how much of the base it still holds (pure).

The average begins as the base's weights and takes part of the new weights at each update. With a fixed decay *d* a
short training would publish mostly its base: 0.9999¹⁰⁰⁰ = 90 % of it. So the decay rises to *d*:

    decay(n) = min(d, (1 + n) / (10 + n))    for update n = 0, 1, 2, …

It is the rule of TensorFlow's ``tf.train.ExponentialMovingAverage(decay, num_updates)``, which diffusers' ``EMAModel``
follows. As long as it rises, the average is over about the last tenth of the updates.

The state of the average is the average itself and *n*, the number of updates, both of which checkpoints hold. Ranks,
attempts and skipped steps do not enter.
"""

from __future__ import annotations

from math import ceil, comb


def decay(update: int, limit: float) -> float:
    """Return the share of the average that an update keeps; updates are counted from 0."""
    return min(limit, (1 + update) / (10 + update))


def base_share(updates: int, limit: float) -> float:
    """Return the share of the base's weights in the average after some updates: the product of their decays.

    While the decay rises, the product of (1 + n) / (10 + n) over m updates is 1 / C(m + 9, 9).
    """
    # The decay rises as long as (1 + n) / (10 + n) < limit.
    rising = min(updates, max(0, ceil((10 * limit - 1) / (1 - limit))))
    share: float = limit ** (updates - rising) / comb(rising + 9, 9)
    return share
