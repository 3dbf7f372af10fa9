"""``darkroom dataset``: what it lists, verifies and deletes, in a folder and in a real S3 store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from components.dataset.encoding_record import write_encoding
from components.dataset.format import Sample, index_key, pack, sample_id, tar_key
from components.dataset.versions import (
    Shard,
    make_dataset,
    newest_key,
    records_of,
    version_key,
    write_dataset,
    write_group,
)
from components.digests import sha256
from components.image.records import Caption, CaptionRecord, Rejection, write_captions, write_rejections
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.cli import main

KEY = "fedcba9876543210"
SET = "0123456789abcdef/89abcdef01234567"
HOSTILE = "<b>\u202e\n\x1b[31m" + "reason" * 30


@pytest.fixture(params=["local", "s3"])
def workdir(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "work"))
    return cast(Storage, request.getfixturevalue("s3"))


def write_shard(dataset: Storage, numbers: Sequence[int], bucket: tuple[int, int] = (16, 24)) -> Shard:
    samples = []
    for number in numbers:
        image = sha256(b"%d" % number)
        meta = {"sha256": image, "caption_digest": sample_id(image, "a digit").caption}
        samples.append(Sample(image, np.ones((8, 2, 3), np.float16), np.ones((5, 6), np.float16), meta))
    tar, index = pack(samples)
    name = f"shards/{bucket[0]}x{bucket[1]}/{numbers[0]:016x}"
    dataset.write(tar_key(name), tar)
    dataset.write(index_key(name), index)
    return Shard(name, bucket, len(numbers), len(tar), sha256(tar), held_out=(0,))


def commit(workdir: Storage, shards: Sequence[Shard], caption_set: str = SET) -> str:
    dataset = workdir.child(f"datasets/{KEY}")
    committed = make_dataset(
        KEY, {"version": 1, "models": {"vae": "a" * 64}}, shards, rejected=2, caption_set=caption_set
    )
    write_encoding(dataset, committed.encoding)
    write_group(records_of(dataset, caption_set), "000", [shard.name for shard in shards])
    write_dataset(dataset, committed)
    return committed.digest


def use(workdir: Storage, name: str, digest: str) -> None:
    workdir.write_json(f"runs/{name}/steps/index.json", {"result": {"encoding_key": KEY, "dataset_digest": digest}})


def run(capsys: pytest.CaptureFixture[str], workdir: Storage, *arguments: str) -> tuple[int, str, str]:
    code = main(["dataset", arguments[0], "--workdir", workdir.url, *arguments[1:]])
    out, err = capsys.readouterr()
    for line in out.splitlines():
        assert line.isprintable(), line
        assert len(line) <= 80 or arguments[0] in ("verify", "show") or workdir.url in line, line
    return code, out, err


def test_the_life_of_a_dataset(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = workdir.child(f"datasets/{KEY}")
    shards = [write_shard(dataset, range(first, first + 4)) for first in (0, 10)]
    shards.append(write_shard(dataset, range(20, 22), (32, 32)))
    first, second = commit(workdir, shards[:2]), commit(workdir, shards[1:])
    use(workdir, "one", second)

    code, out, _ = run(capsys, workdir, "ls")
    assert code == 0
    assert out.startswith(f"{KEY}  24×16, 32×32\n")
    assert re.search(rf"^\* {second[:12]} +6 +2 ", out, re.MULTILINE)
    assert re.search(rf"^  {first[:12]} +8 +2 ", out, re.MULTILINE)
    assert "run one" in out

    code, out, _ = run(capsys, workdir, "verify")
    assert (code, out.split(",")[:2]) == (0, ["2 shards", " 6 samples"])

    code, out, _ = run(capsys, workdir, "gc", "--older-than", "0s")
    assert code == 0
    assert dataset.exists(version_key(first))
    assert "1 × version" in out
    assert "1 × shard" in out
    _, out, _ = run(capsys, workdir, "gc", "--yes")
    assert "×" not in out, "all of it is younger than a day"
    assert dataset.exists(version_key(first))
    code, out, _ = run(capsys, workdir, "gc", "--older-than", "0s", "--yes")
    assert (code, "1 × version" in out) == (0, True)
    assert {entry.key for entry in dataset.list("shards")} == {
        key for shard in shards[1:] for key in (tar_key(shard.name), index_key(shard.name))
    }
    assert [entry.key for entry in dataset.list("versions")] == [version_key(second)]
    assert run(capsys, workdir, "verify")[0] == 0

    workdir.delete_tree("runs")
    assert "1 × dataset" in run(capsys, workdir, "gc", "--older-than", "0s", "--yes")[1]
    assert list(workdir.list()) == []
    assert workdir.url in run(capsys, workdir, "ls")[1]


def test_what_is_broken_is_named(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = workdir.child(f"datasets/{KEY}")
    shards = [write_shard(dataset, range(first, first + 4)) for first in (0, 10, 20, 30)]
    old = commit(workdir, shards[:3])
    commit(workdir, shards)
    tar = dataset.read(tar_key(shards[1].name))
    dataset.write(tar_key(shards[1].name), tar[:700] + b"!" + tar[701:])
    dataset.delete(index_key(shards[2].name))
    dataset.write(version_key(old), b"{")
    code, out, err = run(capsys, workdir, "verify", "--workers", "2")
    assert code == 65
    assert [name for name in (shard.name for shard in shards) if name in out] == [shards[1].name, shards[2].name]
    assert f"versions/{old}.json" in out
    assert "3 " in err
    dataset.write(newest_key(SET), b"")
    code, out, _ = run(capsys, workdir, "verify", KEY[:4])
    assert (code, "dataset.json" in out) == (65, True)


def test_show_counts_what_the_images_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = open_storage(str(tmp_path))
    dataset = workdir.child(f"datasets/{KEY}")
    old = commit(workdir, [write_shard(dataset, range(3))])
    new = commit(workdir, [write_shard(dataset, range(10, 14))])
    written = [
        CaptionRecord("a" * 64, "a.png", 1, (Caption("x", "sidecar:a.txt"), Caption("y", "model:blip")), "v", 8, 8),
        CaptionRecord("b" * 64, "b.png", 1, (Caption("x", "sidecar:b.txt"),), "v", 8, 8, license="CC-BY-4.0"),
    ]
    write_captions(workdir.child(f"captions/{SET}"), "000", written, [])
    write_rejections(records_of(dataset, SET), "rejected.jsonl", [Rejection("c", "ingest", HOSTILE, "")] * 2)
    code, out, _ = run(capsys, workdir, "show", KEY[:3])
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    texts = {name: text for name, text in rows if name != "encoding"}
    assert code == 0
    assert texts["version"].startswith(new[:12])
    assert texts["version"].endswith(" 2 versions")
    assert re.findall(r"\d+", texts["images"]) == ["4", "1"]
    assert re.findall(r"\d+", texts["samples"]) == ["4", "0"]
    assert re.search(r"^captions .* sidecar 2, model:blip 1$", out, re.MULTILINE)
    assert re.search(r"^licences .* unknown 1, CC-BY-4.0 1$", out, re.MULTILINE)
    assert "\\u202e\\n\\x1b[31mreason" in texts["rejected"]
    assert ["encoding", "models.vae: aaaaaaaaaaaa…"] in rows
    _, out, _ = run(capsys, workdir, "show", "--version", old[:6])
    version = next(line for line in out.splitlines() if line.startswith("version"))
    assert old[:12] in version
    assert "not the newest" in version
    assert "captions" not in out


def test_two_caption_sets_of_one_encoding_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = open_storage(str(tmp_path))
    dataset = workdir.child(f"datasets/{KEY}")
    both, alone = (write_shard(dataset, range(first, first + 3)) for first in (0, 10))
    kept, gone = commit(workdir, [both]), commit(workdir, [both, alone], other := "fedcba9876543210/one")
    for name in (SET, other):
        write_captions(workdir.child(f"captions/{name}"), "000", [], [])
    use(workdir, "one", kept)

    _, out, _ = run(capsys, workdir, "ls")
    assert {line[:14] for line in out.splitlines() if line.startswith("*")} == {f"* {kept[:12]}", f"* {gone[:12]}"}
    _, out, _ = run(capsys, workdir, "show")
    assert {line.split()[-1] for line in out.splitlines() if line.startswith("caption set")} == {SET, other}
    assert run(capsys, workdir, "verify")[1].startswith("2 shards"), "the one that both have is checked once"

    run(capsys, workdir, "gc", "--older-than", "0s", "--yes")
    assert [entry.key for entry in dataset.list("shards")] == [index_key(both.name), tar_key(both.name)]
    assert {entry.key for entry in workdir.list("captions")} == {
        f"captions/{SET}/000{end}jsonl" for end in (".", ".rejected.")
    }
    assert [entry.key for entry in dataset.list("sets")] == [newest_key(SET), f"sets/{SET}/groups/000.json"]
    assert [entry.key for entry in dataset.list("versions")] == [version_key(kept)]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["gc", "--older-than", "soon"], 78, "--older-than 'soon'"),
        (["show", "zz"], 65, "'zz'"),
        (["verify"], 65, " no dataset"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
) -> None:
    exit_code, out, err = run(capsys, open_storage(str(tmp_path)), *arguments)
    assert (exit_code, out) == (code, "")
    assert part in err
