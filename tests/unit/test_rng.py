"""Random numbers: the same for a sample whoever draws it and wherever, and normal where they say so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from components import rng
from components.digests import sha256
from components.errors import DarkroomError
from components.rng import Stream, fill_normals, hash_key, normals, scramble, uniforms


def test_a_sample_draws_the_same_whoever_its_neighbours_are() -> None:
    together = normals(1, 2, [5, 6, 7], Stream.NOISE, (4, 3))
    assert together[1].tobytes() == normals(1, 2, [6], Stream.NOISE, (4, 3))[0].tobytes()
    assert uniforms(1, 2, [5, 6, 7], Stream.TIMESTEP)[1] == uniforms(1, 2, [6], Stream.TIMESTEP)[0]


def test_samples_of_several_epochs_are_drawn_together_as_apart() -> None:
    rows = np.empty((2, 9), dtype=np.float32)
    fill_normals(rows, 1, epochs=[2, 3], positions=[8, 0], stream=Stream.NOISE)
    assert rows[0].tobytes() == normals(1, 2, [8], Stream.NOISE, (9,)).tobytes()
    assert rows[1].tobytes() == normals(1, 3, [0], Stream.NOISE, (9,)).tobytes()
    apart = [uniforms(1, 2, [8], Stream.TIMESTEP)[0], uniforms(1, 3, [0], Stream.TIMESTEP)[0]]
    assert uniforms(1, [2, 3], [8, 0], Stream.TIMESTEP).tolist() == apart


def test_numbers_are_pinned() -> None:
    """Runs of earlier versions must go on with the same numbers on any machine, so these may never change."""
    assert [value.hex() for value in normals(1, 2, [3], Stream.NOISE, (3,))[0].tolist()] == [
        "-0x1.0488ae0000000p-2",
        "-0x1.807f000000000p+0",
        "0x1.813d000000000p-2",
    ]
    assert (
        sha256(normals(7, 0, range(16), Stream.LATENT, (4, 64, 64)).tobytes())
        == "d7104b386c2e224ba1e187105740e314d0323f06447f6b3af13a1964ee6d0273"
    )
    assert uniforms(1, 2, [3], Stream.TIMESTEP)[0].hex() == "0x1.327c10394c4d0p-4"
    assert hash_key(1, 2, 3) == 3034334815109854690
    assert scramble(np.array([1], dtype=np.uint64)).tolist() == [0x910A2DEC89025CC1]  # SplitMix64's answer to seed 1


def test_streams_are_pinned() -> None:
    """Another number for a stream draws other numbers for what went before."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "NOISE": 1, "TIMESTEP": 2, "CAPTION_DROPOUT": 3, "LATENT": 4, "SAMPLING": 5, "AUTOENCODER_BATCH": 6,
        "AUTOENCODER_NOISE": 7, "VARIANT": 8,
    }  # fmt: skip


def test_every_part_of_the_key_matters() -> None:
    keys = [(1, 1, 1, Stream.NOISE), (2, 1, 1, Stream.NOISE), (1, 2, 1, Stream.NOISE), (1, 1, 2, Stream.NOISE)]
    keys.append((1, 1, 1, Stream.LATENT))
    drawn = {normals(seed, epoch, [position], stream, (8,)).tobytes() for seed, epoch, position, stream in keys}
    assert len(drawn) == len(keys)
    assert len({uniforms(seed, epoch, [position], stream)[0] for seed, epoch, position, stream in keys}) == len(keys)


def test_normals_are_normal() -> None:
    drawn = normals(0, 0, range(250), Stream.NOISE, (4, 64, 64)).astype(np.float64).ravel()  # 4 million
    error = 1 / np.sqrt(drawn.size)
    assert abs(drawn.mean()) < 5 * error
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2) * error
    assert abs((drawn**3).mean()) < 5 * np.sqrt(15) * error
    assert abs((drawn**4).mean() - 3) < 5 * np.sqrt(96) * error
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    for beyond in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(beyond) * drawn.size
        assert abs((np.abs(drawn) > beyond).sum() - expected) < 5 * np.sqrt(expected), beyond


def test_the_four_numbers_of_a_rotation_are_independent() -> None:
    """Four columns come from the same four draws: neither they nor their squares nor their signs correlate."""
    drawn = normals(3, 1, range(50_000), Stream.LATENT, (4,)).astype(np.float64)
    for power in (1, 2):
        assert np.abs(np.corrcoef(drawn.T**power) - np.eye(4)).max() < 5 / np.sqrt(50_000)
    signs = (drawn > 0) @ [1, 2, 4, 8]
    assert stats.chisquare(np.bincount(signs.astype(int), minlength=16)).pvalue > 1e-3


def test_samples_and_streams_are_uncorrelated() -> None:
    noise = normals(0, 0, range(100), Stream.NOISE, (2000,))
    latent = normals(0, 0, range(100), Stream.LATENT, (2000,))
    both = np.concatenate([noise, latent]).astype(np.float64)
    assert np.abs(np.corrcoef(both) - np.eye(200)).max() < 6 / np.sqrt(2000)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17])
def test_any_number_of_normals_can_be_drawn(size: int) -> None:
    drawn = normals(5, 0, [1], Stream.NOISE, (size,))
    assert drawn.shape == (1, size)
    assert len(set(drawn.ravel().tolist())) == size


def test_uniforms_lie_evenly_in_the_unit_interval() -> None:
    drawn = np.concatenate([uniforms(0, epoch, range(20_000), Stream.TIMESTEP) for epoch in range(5)])
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(drawn.size)


def test_a_machine_with_another_logarithm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse:
        def inv_cdf(self, p: float) -> float:
            return round(2 * p - 1, 3)

    monkeypatch.setattr(rng, "NormalDist", Coarse)
    rng._table.cache_clear()
    try:
        with pytest.raises(DarkroomError, match="logarithm"):
            normals(0, 0, [0], Stream.NOISE, (1,))
    finally:
        rng._table.cache_clear()
