"""Two runs in one workdir, of two sources or of one with two settings: each has its own images and captions only."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.clean.cleaning import clean
from components.clean.config import CleanConfig
from components.dataset.format import read_index
from components.dataset.reader import ShardReader
from components.dataset.versions import Dataset, read_dataset
from components.digests import sha256
from components.image.decoding import ImageLimits
from components.image.filters import FilterConfig
from components.image.records import read_manifest
from components.image.sources import open_source
from components.index.build import index
from components.index.config import IndexConfig
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.latents.config import LatentsConfig
from components.latents.encoding_key import encoding_key
from components.latents.group import encode
from components.model.architecture import Architecture
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.stores.mortal import Killed, mortal

TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
)
SMALL = {"resolution": 16, "batch_size": 4, "shard_samples": 4, "device": "cpu"}
LATENTS = LatentsConfig.parse(SMALL)
QUIET = Progress(io.StringIO())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from components.autoencoder.scratch import build_scratch

    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["square one"], seed=1).save_pretrained(folder)
    return folder


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 200, (20, 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write_images(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"square {number}")
    return folder


class Run:
    """The steps from images to a dataset, one after the other or each when it is asked for."""

    def __init__(
        self, source: Path, base: Path, settings: str = "plain", prefix: str = "", latents: LatentsConfig = LATENTS
    ) -> None:
        self.source, self.base = source, str(base)
        self.ingest = IngestConfig(source=str(source), group_images=8)
        self.source_id = self.ingest.source_id(open_source(str(source)).url)
        self.caption_set = f"{self.source_id}/{settings}"
        self.captions = CaptionConfig(sources=("sidecar",), prefix=prefix)
        self.latents = latents
        self.key = encoding_key(base, latents)
        self.counts: Counter[str] = Counter()

    def steps(self, workdir: Storage) -> Iterator[str]:
        """Do the work step by step; yields the name of each step that is done."""
        self.counts.clear()
        ingest(self.ingest, workdir, QUIET)
        yield "ingest"
        groups = read_manifest(workdir, self.source_id).groups
        for group in groups:
            limits, names = ImageLimits(), (group, self.source_id, self.caption_set)
            self.counts["captioned"] += caption(self.captions, limits, *names, workdir, QUIET)["captioned"]
            yield "caption"
        clean(CleanConfig(), FilterConfig(), self.source_id, groups, self.caption_set, workdir, QUIET)
        yield "clean"
        for group in groups:
            where = (group, self.source_id, self.caption_set, self.key, self.base)
            self.counts["encoded"] += encode(self.latents, *where, workdir, QUIET)["encoded"]
            yield "latents"
        of_set = (self.source_id, groups, self.caption_set, self.key)
        index(IndexConfig(held_out=0.2), *of_set, workdir, QUIET, self.latents.variants.count)
        yield "index"

    def finish(self, workdir: Storage) -> Dataset:
        for _ in self.steps(workdir):
            pass
        return self.dataset(workdir)

    def dataset(self, workdir: Storage) -> Dataset:
        dataset = read_dataset(workdir.child(f"datasets/{self.key}"), self.caption_set)
        assert dataset is not None
        return dataset

    def live(self, workdir: Storage) -> set[tuple[str, str]]:
        """Digest and caption of each image that training reads or holds out."""
        storage, samples = workdir.child(f"datasets/{self.key}"), set()
        for shard in self.dataset(workdir).shards:
            reader = ShardReader(storage, shard.name, shard.sha256)
            for number in (*shard.train, *shard.held_out):
                meta = reader.sample(number).meta
                samples.add((meta["sha256"], meta["caption"]))
        return samples


def expected(numbers: Sequence[int], prefix: str = "") -> set[tuple[str, str]]:
    return {(sha256(png(number)), f"{prefix}square {number}") for number in numbers}


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Run]:
    """Runs of two sources without a common image."""
    root = tmp_path_factory.mktemp("two")
    return [Run(write_images(root / str(first), range(first, first + 14)), base) for first in (0, 100)]


@pytest.fixture(scope="module")
def alone(two: list[Run], tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """What each run commits in a workdir of its own."""
    return [run.finish(open_storage(str(tmp_path_factory.mktemp("alone")))) for run in two]


def check(runs: Sequence[Run], datasets: Sequence[Dataset], workdir: Storage) -> None:
    assert [run.dataset(workdir) for run in runs] == datasets
    for first, run in zip((0, 100), runs, strict=True):
        assert run.live(workdir) == expected(range(first, first + 14))
        run.finish(workdir)
        assert run.counts == {"captioned": 0, "encoded": 0}
    assert [run.dataset(workdir) for run in runs] == datasets


def test_one_after_the_other_each_commits_what_it_commits_alone(
    two: list[Run], alone: list[Dataset], workdir: Storage
) -> None:
    assert [run.finish(workdir) for run in two] == alone
    check(two, alone, workdir)


def test_step_by_step_in_turn_each_commits_what_it_commits_alone(
    two: list[Run], alone: list[Dataset], workdir: Storage
) -> None:
    for _ in chain.from_iterable(zip_longest(*(run.steps(workdir) for run in two))):
        pass
    check(two, alone, workdir)


def test_killed_at_many_moments_in_turn_both_go_on(two: list[Run], alone: list[Dataset], tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    kills = 0
    for patience in (1, 6, 9, 13, 17):
        for run in two:
            try:
                run.finish(mortal(open_storage(url), [patience]))
            except Killed:
                kills += 1
    assert kills == 10
    for run in two:
        run.finish(open_storage(url))
    check(two, alone, open_storage(url))


def test_one_source_with_two_captions_makes_two_datasets(tmp_path: Path, base: Path, workdir: Storage) -> None:
    source = write_images(tmp_path / "images", range(14))
    plain, art = Run(source, base, "plain"), Run(source, base, "art", prefix="art of ")
    for _ in chain.from_iterable(zip_longest(plain.steps(workdir), art.steps(workdir))):
        pass
    assert plain.live(workdir) == expected(range(14))
    assert art.live(workdir) == expected(range(14), "art of ")
    assert plain.counts["encoded"] == art.counts["encoded"] == 14
    again = Run(source, base, "other threshold")
    assert again.finish(workdir).digest == plain.dataset(workdir).digest
    assert again.counts == {"captioned": 0, "encoded": 0}, "captions and shards of the same source serve again"


def test_one_source_with_one_and_with_two_variants_makes_two_versions(
    tmp_path: Path, base: Path, workdir: Storage
) -> None:
    source = write_images(tmp_path / "images", range(14))
    settings = [{"count": count, "flip": True} for count in (1, 2)]
    runs = [Run(source, base, latents=LatentsConfig.parse({**SMALL, "variants": variants})) for variants in settings]
    assert runs[0].key == runs[1].key
    turns = [run.steps(workdir) for run in runs]
    committed = []
    for step in zip_longest(*turns):
        if step == ("index", "index"):
            committed.append(runs[1].dataset(workdir))
    assert runs[0].finish(workdir).samples == 14
    assert [dataset.samples for dataset in committed] == [28]
    assert runs[1].finish(workdir) == committed[0]
    assert runs[1].counts["encoded"] == 0


def test_an_image_of_another_source_is_not_encoded_again(tmp_path: Path, base: Path, workdir: Storage) -> None:
    first = Run(write_images(tmp_path / "first", range(14)), base)
    first.finish(workdir)
    before = {entry.key: workdir.read(entry.key) for entry in workdir.list()}
    larger = Run(write_images(tmp_path / "larger", range(18)), base)
    larger.finish(workdir)
    assert larger.live(workdir) == expected(range(18))
    assert larger.counts["encoded"] == 4
    assert {key: workdir.read(key) for key in before} == before, "nothing of the first is touched"

    few = Run(write_images(tmp_path / "few", [0, *range(50, 60)]), base)
    dataset = few.finish(workdir)
    assert few.live(workdir) == expected([0, *range(50, 60)])
    storage = workdir.child(f"datasets/{few.key}")
    assert sum(len(read_index(storage, shard.name).samples) for shard in dataset.shards) == 11, "no shard of strangers"


def test_equal_images_with_other_licences_never_write_one_shard(tmp_path: Path, base: Path, workdir: Storage) -> None:
    runs = []
    for name in ("CC0-1.0", "CC-BY-4.0"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(5):
            (folder / f"{number}.png").write_bytes(png(number))
        lines = [{"file_name": f"{n}.png", "text": f"square {n}", "license": name} for n in range(5)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(Run(folder, base))
    shards = [
        {shard.name for shard in run.finish(open_storage(str(tmp_path / f"alone{number}"))).shards}
        for number, run in enumerate(runs)
    ]
    assert not shards[0] & shards[1]
    for _ in chain.from_iterable(zip_longest(*(run.steps(workdir) for run in runs))):
        pass
    assert runs[0].live(workdir) == runs[1].live(workdir) == expected(range(5))


PROCESS = """
import sys
from pathlib import Path
from components.storage.open import open_storage
from tests.integration.test_two_sources import Run
source, base, work, times = sys.argv[1:]
for _ in range(int(times)):
    Run(Path(source), Path(base)).finish(open_storage(work))
"""


@pytest.mark.proof
def test_at_the_same_time_in_processes_that_are_killed(
    two: list[Run], alone: list[Dataset], base: Path, workdir: Storage
) -> None:
    def start(times: int) -> list[subprocess.Popen[bytes]]:
        arguments = [[str(run.source), str(base), workdir.url, str(times)] for run in two]
        return [subprocess.Popen([sys.executable, "-c", PROCESS, *own]) for own in arguments]

    for shards in (1, 3, 6):  # both are killed once so many shards are there
        processes = start(1)
        while len(list(workdir.list(f"datasets/{two[0].key}/shards"))) < shards and processes[0].poll() is None:
            pass
        for process in processes:
            process.kill()
            process.wait()
    assert [process.wait() for process in start(2)] == [0, 0]
    check(two, alone, workdir)
