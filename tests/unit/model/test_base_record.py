"""A run goes on with the base model that it began with, or says which part of it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import DamagedFile, DataError
from components.model.base_record import KEY, check_base, record_base
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.models import flip, forget_checks


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "base" / part).mkdir(parents=True)
        (tmp_path / "base" / part / "model.safetensors").write_bytes(part.encode() * 9)
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work/runs/cats-1"))


def test_the_model_that_a_run_began_with_is_accepted_again(base: Path, run: Storage) -> None:
    check_base(run, "base", base)  # nothing is recorded yet
    (base / "model_index.json").write_bytes(b"{}")
    record_base(run, "base", base)
    assert set(run.read_json(KEY)["parts"]) == {"unet", "vae", "text_encoder"}
    written = run.read(KEY)
    record_base(run, "moved/base", base)
    assert run.read(KEY) == written


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_changed_part_is_named_with_what_to_do(base: Path, run: Storage, part: str) -> None:
    """A flipped bit in an autoencoder once had 11 checkpoints thrown away, and the exit code was 0."""
    record_base(run, "base", base)
    flip(base / part / "model.safetensors")
    with pytest.raises(
        DataError, match=rf"'base' is not the one .*cats-1 began with .*its {part} changed; .*delete {KEY}"
    ):
        record_base(run, "base", base)
    check_base(run, "base", base, needed=("text_encoder",))
    run.delete(KEY)
    record_base(run, "base", base)
    check_base(run, "base", base)


def test_a_missing_part_is_named(base: Path, run: Storage) -> None:
    record_base(run, "base", base)
    (base / "unet/model.safetensors").unlink()
    forget_checks()
    with pytest.raises(DataError, match="its unet changed"):
        check_base(run, "base", base)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"parts": 3}', b"\xff"])
def test_a_record_that_is_none_is_named(base: Path, run: Storage, content: bytes) -> None:
    run.write(KEY, content)
    with pytest.raises(DamagedFile, match=r"base\.json.*delete it"):
        record_base(run, "base", base)
