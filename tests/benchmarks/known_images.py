"""What a dataset that is known already costs: indexing it again, verifying it, looking for garbage in it.

    python tests/benchmarks/known_images.py [--images 10000] [--shard-samples 500]

The samples are tiny, so that what is measured is the bookkeeping. Each time is the best of three, in seconds of wall
clock and of CPU.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable

import numpy as np

from components.dataset.encoding_record import write_encoding
from components.dataset.format import Sample, index_key, pack, sample_id, shard_name, tar_key
from components.dataset.garbage import find_garbage
from components.dataset.integrity import verify
from components.dataset.references import in_use, read_references
from components.dataset.versions import read_dataset, records_of, write_group
from components.digests import sha256
from components.image.records import Caption, CaptionRecord, write_captions, write_rejections
from components.index.build import index
from components.index.config import IndexConfig
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

KEY, SOURCE, GROUPS = "fedcba9876543210", "0123456789abcdef", [f"g{number}" for number in range(8)]
SET = f"{SOURCE}/mine"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="known images")
    parser.add_argument("--shard-samples", type=int, default=500, help="samples per shard")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = open_storage(folder)
        dataset = workdir.child(f"datasets/{KEY}")
        _fill(workdir, arguments.images, arguments.shard_samples)

        def again() -> None:
            index(IndexConfig(held_out=0.05), SOURCE, GROUPS, SET, KEY, workdir, Progress(io.StringIO()))

        def verified() -> None:
            committed = read_dataset(dataset, SET)
            assert committed is not None
            assert not any(verdict.problem for verdict in verify(dataset, committed, workers=2))

        def looked() -> None:
            since = time.time() + 3600  # nothing is too young to be looked at
            assert list(find_garbage(workdir, lambda: in_use(read_references(workdir), since), since)) == []

        again()
        newest = read_dataset(dataset, SET)
        used = {"encoding_key": KEY, "dataset_digest": newest.digest if newest else ""}
        workdir.write_json("runs/one/steps/index.json", {"result": used})
        print(f"{arguments.images:,} known images in shards of {arguments.shard_samples}, best of three")
        _tell("index, where nothing changed", again)
        _tell("verify, all samples decoded", verified)
        _tell("gc, nothing to find", looked)


def _fill(workdir: Storage, count: int, shard_samples: int) -> None:
    dataset = workdir.child(f"datasets/{KEY}")
    write_encoding(dataset, {"version": 1})
    write_rejections(workdir, f"ingest/{SOURCE}/rejected.jsonl", [])
    moments, text = np.zeros((8, 4, 4), np.float16), np.zeros((4, 8), np.float16)
    for number, group in enumerate(GROUPS):
        images = sorted(sha256(b"%d" % image) for image in range(number, count, len(GROUPS)))
        captions = {image: f"picture {image[:6]}" for image in images}
        records = [CaptionRecord(i, f"{i}.png", 1, (Caption(captions[i], "sidecar:a.txt"),), "v", 8, 8) for i in images]
        write_captions(workdir.child(f"captions/{SET}"), group, records, [])
        names = []
        for first in range(0, len(images), shard_samples):
            ids = [(image, sample_id(image, captions[image])) for image in images[first : first + shard_samples]]
            meta = {image: {"sha256": image, "caption_digest": made.caption} for image, made in ids}
            tar, idx = pack([Sample(image, moments, text, meta[image]) for image, _ in ids])
            names.append(shard_name((32, 32), ids))
            dataset.write(tar_key(names[-1]), tar)
            dataset.write(index_key(names[-1]), idx)
        write_group(records_of(dataset, SET), group, names)


def _tell(what: str, work: Callable[[], None]) -> None:
    times = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"  {what:<42} {min(wall for wall, _ in times):6.3f} s, CPU {min(cpu for _, cpu in times):6.3f} s")


if __name__ == "__main__":
    main()
