"""Files of rows that are cut or changed at any place cost only themselves: nothing hangs, and the next file is read."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow as pa
import pytest

from components.image.sources import open_source
from components.ingest.imports.range_file import RangeFile
from tests.bad_rows import arrow, hdf5, images, parquet, pixels, table
from tests.images import put
from tests.stores.memory import MemoryStorage
from tests.unit.ingest.test_rows import Imported

GOOD = {
    "parquet": [parquet(), parquet(compression="zstd"), parquet(row_group_size=1, use_dictionary=False)],
    "arrow": [arrow(), arrow(make=pa.ipc.new_file), arrow(table(text=pa.array(["a", "b", "c"]).dictionary_encode()))],
    "h5": [hdf5(), hdf5(lambda file: file.create_dataset("image", data=pixels(), compression=9), input_image=None)],
}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a file that is cut, or has some other bytes, mostly near its beginning or end."""
    if not chance.randrange(4):
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 20))):
        near = chance.randrange(min(4000, len(data)))
        at = chance.choice((chance.randrange(len(data)), near, len(data) - 1 - near))
        changed[at] = chance.choice((0, 255, chance.randrange(256), changed[at] ^ 1))
    return bytes(changed)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(8))
def test_damage_at_any_place_costs_only_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int) -> None:
    chance = random.Random(seed)
    for ending, files in GOOD.items():
        for number in range(25 * len(files)):
            data = damaged(files[number % len(files)], chance)
            put(tmp_path / f"in/{number:04d}.{ending}", data, None)
    put(tmp_path / "in/zz.parquet", parquet(table(image=images(first=200))), None)
    rows = {"isolated": True, "seconds": 60.0, "memory_gib": 2.0}
    read = Imported(str(tmp_path / "in"), MemoryStorage(f"rows-damaged-{seed}"), rows=rows)
    assert sum(image.name.startswith("zz.parquet-") for image in read.images()) == 3
    assert "Traceback" not in capfd.readouterr().err  # Arrow ends its process where it trusts what the file says


def test_a_file_gives_no_more_than_it_has_whatever_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "a.arrow", b"words", None)
    file = RangeFile(open_source(str(tmp_path)), "a.arrow", 5)
    assert (file.read(2), file.read(2**60), file.read(2**60)) == (b"wo", b"rds", b"")
    assert (file.seek(-2, io.SEEK_END), file.read(), file.seek(1), file.readinto(memoryview(bytearray(9)))) == (
        *(3, b"ds"),
        *(1, 4),
    )
