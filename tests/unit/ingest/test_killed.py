"""A run that is killed anywhere and started again writes the same bytes; an unchanged source costs only its listing."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.errors import StorageError
from components.image.records import Rejection, read_images, read_manifest
from components.image.sources import Source, SourceFile
from components.ingest import file_cache, parallel_reader
from components.ingest.config import IngestConfig
from components.ingest.file_cache import FileRecord
from components.ingest.ingest import ingest
from components.ingest.listing import ListedFile
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage
from tests.stores.mortal import Killed, contents, killed_everywhere, mortal


class MadeUp(Source):
    """A listing with nothing behind it: names, and the tags of their versions."""

    def __init__(self, files: dict[str, str]) -> None:
        self.url = "made-up"
        self.files = files

    def list(self) -> Iterator[SourceFile]:
        for name, tag in sorted(self.files.items()):
            yield SourceFile(name, 100, tag)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        raise AssertionError("nothing is to be read")


def read_made_up(_: Source, __: IngestConfig, file: ListedFile) -> list[FileRecord | Rejection]:
    digest = hashlib.sha256((file.name + file.tag).encode()).hexdigest()
    small = file.name.startswith("small")
    return [FileRecord(file.name, file.name, file.tag, 100, digest, 4 if small else 64, 64, "PNG")]


class Mortal(MemoryStorage):
    """A storage whose process dies at a given operation."""

    def __init__(self, name: str, last: int) -> None:
        super().__init__(name)
        self.remaining = last

    def _live(self) -> None:
        self.remaining -= 1
        if self.remaining < 0:
            raise StorageError("killed")

    def write(self, key: str, data: bytes) -> None:
        self._live()
        super().write(key, data)

    def delete(self, key: str) -> None:
        self._live()
        super().delete(key)


def run(files: dict[str, str], workdir: Storage, **settings: Any) -> dict[str, Any]:
    config = IngestConfig.parse({"source": "made-up", "readers": 2, **settings})
    return ingest(config, workdir, Progress(io.StringIO()), MadeUp(files), read_made_up)


BEFORE = {f"{number:03d}.png": "1" for number in range(60)} | {"small.png": "1"}
AFTER = {name: tag for name, tag in BEFORE.items() if name > "010"} | {f"n{i:02d}.png": "1" for i in range(40)}
AFTER |= {"050.png": "2", "small-too.png": "1"}


def test_a_run_that_is_killed_at_any_moment_is_finished_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_reader, "JOURNAL_ROWS", 10)
    monkeypatch.setattr(file_cache, "ROWS_PER_PART", 16)
    whole = MemoryStorage("killed-never")
    run(BEFORE, whole, group_images=30)
    counts = run(AFTER, whole, group_images=30)
    assert (counts["new"], counts["changed"], counts["gone"], counts["rejected"]) == (41, 1, 10, 2)
    moments = 0
    while True:
        name = f"killed-at-{moments}"
        run(BEFORE, MemoryStorage(name), group_images=30)
        try:
            run(AFTER, Mortal(name, moments), group_images=30)
        except StorageError:
            moments += 1
        else:
            break
        manifests = [read_manifest(work, counts["source_id"]) for work in (MemoryStorage(name), whole)]
        again = run(AFTER, MemoryStorage(name), group_images=30)
        assert contents(MemoryStorage(name)) == contents(whole), f"killed at operation {moments - 1}"
        # What was read before the kill is news until the manifest tells of it.
        assert (again["new"] + again["changed"] >= 42) == (manifests[0] != manifests[1])
    assert moments > 20


def test_each_of_two_killed_runs_leaves_what_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_reader, "JOURNAL_ROWS", 10)
    work = MemoryStorage("killed-twice")
    for _ in range(2):
        with pytest.raises(Killed):
            run(BEFORE, mortal(MemoryStorage("killed-twice"), [3]))  # an empty part of the journal and two of ten rows
    assert run(BEFORE, work)["read"] == 61 - 2 * 20


def test_what_could_not_be_read_is_tried_again_though_the_listing_is_the_same() -> None:
    def fail_once(source: Source, config: IngestConfig, file: ListedFile) -> list[FileRecord | Rejection]:
        away = Rejection(file.name, "ingest", "unreadable", "no disk \udcff")
        return [away] if file.name == "003.png" else read_made_up(source, config, file)

    work, config = MemoryStorage("killed-away"), IngestConfig.parse({"source": "made-up"})
    first = ingest(config, work, Progress(io.StringIO()), MadeUp(BEFORE), fail_once)
    again = run(BEFORE, work)
    assert (first["images"], again["images"], again["read"]) == (59, 60, 1)
    assert first["rejected"] == again["rejected"] + 1


def test_files_of_which_nobody_knows_whether_they_changed_are_read_each_time() -> None:
    work, files = MemoryStorage("killed-untagged"), {"a.png": "", "b.png": "1"}
    assert [run(files, work)["read"] for _ in range(3)] == [2, 1, 1]


def test_what_another_version_knew_is_read_again() -> None:
    work = MemoryStorage("killed-other")
    run(BEFORE, work)
    (key,) = (entry.key for entry in work.list() if entry.key.endswith("known/00000.jsonl"))
    _, *rows = work.read_lines(key)
    work.write_lines(key, [{"format": file_cache.FORMAT + 1}, *rows])
    assert run({**BEFORE, "another.png": "1"}, work)["read"] == 62


def test_a_run_that_is_killed_does_not_pass_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_reader, "JOURNAL_ROWS", 10)
    monkeypatch.setattr(file_cache, "ROWS_PER_PART", 16)
    whole = MemoryStorage("killed-before")
    run(BEFORE, whole, group_images=100)
    killed = killed_everywhere(
        lambda work: run(BEFORE, work, group_images=100),
        lambda work: run(AFTER, work, group_images=100),
        "memory://killed-and-back",
    )
    for moment, work in enumerate(killed):
        run(BEFORE, work, group_images=100)
        assert contents(work) == contents(whole), f"killed at {moment}"


def test_readers_never_see_a_manifest_without_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_reader, "JOURNAL_ROWS", 10)
    for moment in range(0, 40, 3):
        name = f"killed-reading-{moment}"
        source_id = str(run(BEFORE, MemoryStorage(name), group_images=30)["source_id"])
        try:
            run(AFTER, Mortal(name, moment), group_images=30)
        except StorageError:
            manifest = read_manifest(MemoryStorage(name), source_id)
            for group in manifest.groups:
                read_images(MemoryStorage(name), source_id, group)


def test_ten_thousand_unchanged_images_take_less_than_a_second() -> None:
    files = {f"{number // 100:03d}/{number:05d}.png": "1" for number in range(10_000)}
    work = MemoryStorage("killed-unchanged")
    assert run(files, work)["read"] == 10_000
    began = time.process_time()
    assert run(files, work)["read"] == 0
    assert time.process_time() - began < 1


def test_many_records_go_through_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.storage.base.LINES_IN_MEMORY", 10)
    work = MemoryStorage(f"killed-{tmp_path.name}")
    for count in (0, 9, 10, 11, 1000):
        records = [{"number": number, "name": "\udcff"} for number in range(count)]
        work.write_lines("records.jsonl", iter(records))
        assert list(work.read_lines("records.jsonl")) == records
