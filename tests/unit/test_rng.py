from __future__ import annotations

import numpy as np

from components.rng import Stream, normals, uniforms


def test_a_sample_draws_the_same_whoever_its_neighbours_are() -> None:
    together = normals(1, 2, [5, 6, 7], Stream.NOISE, (4, 3))
    assert together[1].tobytes() == normals(1, 2, [6], Stream.NOISE, (4, 3))[0].tobytes()


def test_numbers_are_pinned() -> None:
    """Runs of earlier versions must go on with the same numbers, so these may never change."""
    assert normals(1, 2, [3], Stream.NOISE, (2,))[0].tolist() == [0.10238779336214066, -0.24662591516971588]
    assert uniforms(1, 2, [3], Stream.TIMESTEP).tolist() == [0.6732574623283613]


def test_every_part_of_the_key_matters() -> None:
    keys = [(1, 1, 1, Stream.NOISE), (2, 1, 1, Stream.NOISE), (1, 2, 1, Stream.NOISE), (1, 1, 2, Stream.NOISE)]
    keys.append((1, 1, 1, Stream.LATENT))
    drawn = {normals(seed, epoch, [position], stream, (8,)).tobytes() for seed, epoch, position, stream in keys}
    assert len(drawn) == len(keys)


def test_normals_are_normal_and_uncorrelated() -> None:
    drawn = normals(0, 0, range(200), Stream.NOISE, (500,)).astype(np.float64)
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / drawn.size)
    assert np.abs(np.corrcoef(drawn) - np.eye(200)).max() < 6 / np.sqrt(500)


def test_uniforms_lie_in_the_unit_interval() -> None:
    drawn = uniforms(0, 0, range(2000), Stream.TIMESTEP)
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
