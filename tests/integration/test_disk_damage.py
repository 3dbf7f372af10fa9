"""What a disk does to a file: every kind of file × every kind of damage is an error by name, or changes nothing.

A finished workdir is made once. Each case damages one file of it, reads it as the steps do, lets ``darkroom verify``
look at it, and puts it back; then the steps of which a damaged or deleted file is made anew write the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.accounting.ledger import read_ledger
from components.dataset.empty_prompt import read_empty_prompt
from components.dataset.encoding_record import read_encoding
from components.dataset.format import read_index
from components.dataset.integrity import check_shard
from components.dataset.versions import read_dataset, read_group, read_version, records_of
from components.digests import short
from components.errors import ConfigError, DarkroomError, DataError, NotFound
from components.image.records import (
    captions_prefix,
    read_caption_rejections,
    read_captions,
    read_clean_rejections,
    read_images,
    read_ingest_rejections,
    read_manifest,
)
from components.ingest.file_cache import read_cache
from components.model import checkpoints
from components.model.base_record import check_base
from components.model.champion import read_champion
from components.model.locations import fetch
from components.model.metric_results import read_evaluation
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.out_of_memory import with_recorded_micro_batch
from pipeline.cli import main
from pipeline.cost.stored_plan import read_planned
from pipeline.datasets.damage import Artifact, artifacts
from pipeline.launch.books.earlier_trainings import has_records_of
from pipeline.launch.state import StateFile
from tests.integration.finished_workdir import STEP, Finished, finish
from tests.models import forget_checks

ADVICE = re.compile(r"delete|restore|run .* again|run the .* step")
WEIGHTS = "diffusion_pytorch_model.safetensors"
Read = Callable[[Finished], Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(tmp_path_factory.mktemp("damage"))


def source(finished: Finished) -> str:
    return str(finished.results["source_id"])


def place(finished: Finished) -> str:
    """Return the name of what ingest read of the place, whatever the settings make of it."""
    return short(read_manifest(finished.storage, source(finished)).source)


def dataset(finished: Finished) -> Any:
    return finished.storage.child(f"datasets/{finished.results['encoding_key']}")


def caption_set(finished: Finished) -> str:
    return str(finished.results["caption_set"])


def captions(finished: Finished) -> Any:
    return finished.storage.child(captions_prefix(caption_set(finished)))


def records(finished: Finished) -> Any:
    return records_of(dataset(finished), caption_set(finished))


def newest(finished: Finished) -> Any:
    committed = read_dataset(dataset(finished), caption_set(finished))
    assert committed is not None
    return committed


def shard(finished: Finished) -> str:
    return str(json.loads(Path(records(finished).url, "dataset.json").read_bytes())["shards"][0]["name"])


def checkpoint(finished: Finished) -> Any:
    opened = checkpoints.open_checkpoint(finished.run, STEP)
    opened.verify()
    return opened.digest


# For each kind of file its key, with names in braces, and how the steps read it.
FILES: dict[str, tuple[str, Read]] = {
    "ingest manifest": ("ingest/{source}/manifest.json", lambda f: read_manifest(f.storage, source(f))),
    "ingest group": ("ingest/{source}/group-g.jsonl", lambda f: read_images(f.storage, source(f), "g")),
    "ingest rejections": ("ingest/{source}/rejected.jsonl", lambda f: read_ingest_rejections(f.storage, source(f))),
    "ingest cache": ("ingest/{place}/known/00000.jsonl", lambda f: list(read_cache(f.storage, place(f)))),
    "captions": ("{captions}/g.jsonl", lambda f: read_captions(captions(f), "g")),
    "caption rejections": ("{captions}/g.rejected.jsonl", lambda f: read_caption_rejections(captions(f), "g")),
    "clean rejections": ("{captions}/g.clean.jsonl", lambda f: read_clean_rejections(captions(f), "g")),
    "rejections": ("{records}/rejected.jsonl", lambda f: list(records(f).read_records("rejected.jsonl"))),
    "encoded group": ("{records}/groups/g.json", lambda f: read_group(records(f), "g")),
    "encoding": ("{dataset}/encoding.json", lambda f: read_encoding(dataset(f))),
    "empty prompt's digests": ("{dataset}/empty.json", lambda f: read_empty_prompt(dataset(f)).states.tobytes()),
    "empty prompt": ("{dataset}/empty.npy", lambda f: read_empty_prompt(dataset(f)).states.tobytes()),
    "dataset": ("{records}/dataset.json", lambda f: read_dataset(dataset(f), caption_set(f))),
    "version": ("{dataset}/versions/{version}.json", lambda f: read_version(dataset(f), newest(f).digest)),
    "shard": ("{dataset}/{shard}.tar", lambda f: check_shard(dataset(f), newest(f).shards[0])),
    "shard index": ("{dataset}/{shard}.idx", lambda f: read_index(dataset(f), shard(f))),
    "base manifest": ("{base}/manifest.json", lambda f: fetch(f.results["base_model"], f.storage)),
    "base commit": ("{base}/COMMIT", lambda f: fetch(f.results["base_model"], f.storage)),
    "base autoencoder": (f"{{base}}/vae/{WEIGHTS}", lambda f: fetch(f.results["base_model"], f.storage)),
    "base tokenizer": ("{base}/tokenizer/tokenizer.json", lambda f: fetch(f.results["base_model"], f.storage)),
    "published manifest": ("{model}/manifest.json", lambda f: fetch(f"workdir:{f.results['published']}", f.storage)),
    "published commit": ("{model}/COMMIT", lambda f: fetch(f"workdir:{f.results['published']}", f.storage)),
    "published UNet": (f"{{model}}/unet/{WEIGHTS}", lambda f: fetch(f"workdir:{f.results['published']}", f.storage)),
    "published card": ("{model}/README.md", lambda f: fetch(f"workdir:{f.results['published']}", f.storage)),
    "champion": ("models/small/champion.json", lambda f: read_champion(f.storage, "small")),
    "evaluation": ("{run}/evaluation/evaluation.json", lambda f: read_evaluation(f.run)),
    "checkpoint manifest": (f"{{run}}/{checkpoints.folder(STEP)}/manifest.json", checkpoint),
    "checkpoint commit": (f"{{run}}/{checkpoints.folder(STEP)}/COMMIT", checkpoint),
    "checkpoint part": (f"{{run}}/{checkpoints.folder(STEP)}/rank-00000.safetensors", checkpoint),
    "ledger": ("{run}/ledger.jsonl", lambda f: read_ledger(f.run)),
    "base record": ("{run}/base.json", lambda f: check_base(f.run, "m", fetch(f.results["base_model"], f.storage))),
    "training record": ("{run}/training.json", lambda f: has_records_of(f.run, f.results["dataset"])),
    "launch state": ("{run}/launch.json", lambda f: StateFile(f.run).record),
    "smaller micro-batch": ("{run}/micro_batch.json", lambda f: with_recorded_micro_batch(TrainConfig(), f.run)),
    "drawn samples": ("{run}/samples/index.json", lambda f: f.run.read_object("samples/index.json", "steps")),
    "settings": ("{run}/config.json", lambda f: f.run.read_json("config.json", must_have_checksum=True)),
    "plan": ("{run}/plan.json", lambda f: read_planned(f.run)),
}  # fmt: skip


def flip(data: bytes) -> bytes:
    """Flip the lowest bit of a letter or a digit in the middle, so that text stays text."""
    middle = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]).isalnum())
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "bit flipped": flip,
    "cut to half": lambda data: data[: len(data) // 2],
    "emptied": lambda _: b"",
    "deleted": lambda _: None,
    "other JSON": lambda _: b'{"other": {"valid": [true]}}\n',
    "another type": lambda _: b"[1, null]\n",
    "no UTF-8": lambda data: b"\xff\xfe" + data,
}

# A deleted file that means by itself that there is none yet: it is made anew, or nobody needs it.
MADE_ANEW = {
    *("ingest cache", "clean rejections", "encoded group", "dataset", "champion", "base record", "plan"),
    *("launch state", "smaller micro-batch"),
    "version",  # dataset.json is the same
}
# What is deleted and nothing else speaks of, so that verify cannot miss it.
VERIFY_MISSES = {
    *("ingest manifest", "ingest cache", "captions", "caption rejections", "clean rejections", "rejections"),
    *("encoded group", "encoding", "empty prompt's digests", "dataset", "version", "shard index"),
    *("base commit", "published commit", "champion", "evaluation", "checkpoint commit"),
    *("base record", "training record", "settings", "plan", "launch state", "smaller micro-batch", "drawn samples"),
}
# Whoever reads a plan takes what is none for no plan.
NO_PLAN = {"other JSON", "another type", "deleted"}
# Verify checks the checksum of each JSON object; whether one without it is a record at all, its readers see.
UNCHECKED_SHAPES = {
    *("base record", "training record", "encoding", "settings", "launch state", "smaller micro-batch", "drawn samples"),
}


def key_of(finished: Finished, kind: str) -> str:
    results = finished.results
    return FILES[kind][0].format(
        source=source(finished),
        place=place(finished),
        dataset=f"datasets/{results['encoding_key']}",
        records=f"datasets/{results['encoding_key']}/sets/{results['caption_set']}",
        captions=f"captions/{results['caption_set']}",
        version=results["dataset"],
        shard=shard(finished),
        base=results["base_model"].removeprefix("workdir:"),
        model=results["published"],
        run=f"runs/{finished.run.url.rpartition('/')[2]}",
    )


@pytest.fixture(params=FILES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def damaged(finished: Finished, kind: str, damage: str) -> Iterator[Path]:
    """Damage a file while the test runs."""
    path = Path(finished.storage.url, key_of(finished, kind))
    whole = path.read_bytes()
    data = DAMAGES[damage](whole)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    forget_checks()
    try:
        yield path
    finally:
        path.write_bytes(whole)
        forget_checks()


def outcome(read: Read, finished: Finished) -> Any:
    """Return what is read, or the error that names what is wrong."""
    try:
        return read(finished)
    except DarkroomError as error:
        return error


def equal(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def test_the_finished_workdir_is_whole(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(FILES) * len(DAMAGES) >= 230
    assert main(["verify", "--workdir", finished.storage.url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["damaged"] == []
    assert document["checked"] > 35


@pytest.fixture(scope="module")
def expected(finished: Finished) -> dict[str, Any]:
    return {kind: read(finished) for kind, (_, read) in FILES.items()}


def test_a_damaged_file_is_an_error_by_name_or_changes_nothing(
    finished: Finished, expected: dict[str, Any], damaged: Path, kind: str, damage: str
) -> None:
    read = outcome(FILES[kind][1], finished)
    top = "/".join(key_of_path(finished, damaged).split("/")[:2])
    checked = [artifact for artifact in artifacts(finished.storage) if artifact.key.startswith(top)]
    problems = [problem for artifact in checked for problem in problem_of(artifact)]

    if isinstance(read, DarkroomError):
        assert re.search("|".join(map(re.escape, (damaged.name, damaged.stem, damaged.parent.name))), str(read))
        # Of a missing file it is enough to say that; of a checkpoint, another one is taken.
        assert isinstance(read, NotFound) or kind.startswith("checkpoint") or ADVICE.search(str(read)), read
        assert problems or damage == "deleted" or kind in UNCHECKED_SHAPES, "verify finds it, too"
    elif damage == "deleted":
        assert kind in MADE_ANEW
    elif kind == "ingest cache":
        assert read in ([], expected[kind]), "its files are read again"
        assert problems or read
    elif not (kind == "plan" and damage in NO_PLAN):
        assert equal(read, expected[kind])
    if damage == "deleted" and kind not in VERIFY_MISSES:
        assert problems, "something says that the file must be there"


def key_of_path(finished: Finished, path: Path) -> str:
    return path.relative_to(finished.storage.url).as_posix()


def problem_of(artifact: Artifact) -> list[str]:
    try:
        artifact.check()
    except DarkroomError as error:
        return [str(error)]
    return []


def test_a_workdir_in_a_store_is_verified_too(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_storage("memory://verify")
    for entry in finished.storage.list():
        store.upload(entry.key, Path(finished.storage.url, entry.key))
    assert main(["verify", "--workdir", store.url, "--workers", "1"]) == 0
    assert capsys.readouterr().out.endswith(" 0 damaged\n")
    key = key_of(finished, "published UNet")
    store.write(key, flip(store.read(key)))
    assert main(["verify", "--workdir", store.url]) == DataError.exit_code
    assert f"{WEIGHTS} is not the file that was committed" in capsys.readouterr().out


def test_verify_takes_one_worker_or_more(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--workdir", finished.storage.url, "--workers", "0"]) == ConfigError.exit_code
    assert "--workers 0: expected 1 or more" in capsys.readouterr().err


# The steps whose outputs are made anew when they are deleted, as the errors advise.
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("ingest manifest", ["ingest"]),
        ("ingest group", ["ingest"]),
        ("ingest rejections", ["ingest"]),
        ("captions", ["caption"]),
        ("caption rejections", ["caption"]),
        ("clean rejections", ["clean"]),
        ("encoded group", ["latents"]),
        ("encoding", ["latents"]),
        ("empty prompt's digests", ["latents"]),
        ("shard", ["latents"]),
        ("shard index", ["latents"]),
        ("rejections", ["index"]),
        ("dataset", ["index"]),
        ("version", ["index"]),
        ("champion", ["publish"]),
        ("published commit", ["publish"]),
        ("evaluation", ["evaluate"]),
    ],
)
def test_what_is_deleted_is_made_again_with_the_same_bytes(finished: Finished, kind: str, steps: list[str]) -> None:
    path = Path(finished.storage.url, key_of(finished, kind))
    whole = path.read_bytes()
    path.unlink()
    forget_checks()
    for step in steps:
        finished.step(step, "00" if step in ("caption", "latents") else None)
    again = path.read_bytes()
    path.write_bytes(whole)
    if kind == "champion":
        assert {**json.loads(again), **TIMED} == {**json.loads(whole), **TIMED}
    elif kind == "evaluation":  # there is a champion to compare with now
        assert json.loads(again)["metrics"] == json.loads(whole)["metrics"]
    else:
        assert again == whole


TIMED = {"published": 0, "checksum": ""}


def test_verify_names_each_damaged_thing_and_what_to_do(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("captions", "published UNet", "ledger", "empty prompt", "checkpoint part")
    paths = {kind: Path(finished.storage.url, key_of(finished, kind)) for kind in kinds}
    before = {path: path.read_bytes() for path in paths.values()}
    for path, data in before.items():
        path.write_bytes(flip(data))
    try:
        assert main(["verify", "--workdir", finished.storage.url]) == DataError.exit_code
        said = capsys.readouterr()
    finally:
        for path, data in before.items():
            path.write_bytes(data)
    lines = said.out.splitlines()
    assert lines[-1].endswith("5 damaged")
    assert len(lines) == 6
    assert all(re.search(r"delete|restore", line) for line in lines[:-1])
    assert "5 damaged files" in said.err
