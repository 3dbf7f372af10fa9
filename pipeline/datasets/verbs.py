"""``darkroom dataset``: what datasets a workdir holds, whether they are whole, and what of them nobody needs."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console

from components.dataset.garbage import DATASETS, find_garbage, remove
from components.dataset.integrity import verify
from components.dataset.references import Reference, keep, read_references
from components.dataset.versions import KEY, VERSIONS, Dataset, read_dataset, read_version
from components.errors import EXIT_DONE, ConfigError, DarkroomError, DataError
from components.image.authors import author
from components.image.records import read_accepted
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.datasets.tables import Contents, Version, garbage_rows, size, tally, version_lines, version_rows
from pipeline.messages import line, plural

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_REJECTED = "rejected.jsonl"


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Add ``ls``, ``show``, ``verify`` and ``gc``."""
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, verb, says in (
        ("ls", list_datasets, "list the datasets and their versions"),
        ("show", show, "tell what one dataset holds"),
        ("verify", verify_datasets, "compare every digest and decode every sample"),
        ("gc", collect, "delete what no run and no published model refers to"),
    ):
        one = verbs.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.")
        one.add_argument("--workdir", default="workdir", help="folder or s3://bucket/prefix (default: %(default)s)")
        one.set_defaults(verb=verb)
        if name in ("show", "verify"):
            one.add_argument("dataset", nargs="?", default="", help="its name, or how it begins (default: all)")
        if name == "show":
            one.add_argument("--version", default="", help="digest, or how it begins (default: the newest)")
        if name == "verify":
            one.add_argument("--workers", type=int, default=4, help="shards side by side (default: %(default)s)")
        if name == "gc":
            one.add_argument(
                "--older-than", default="1d", metavar="TIME", help="spare what is younger: 12h, 7d (default: 1d)"
            )
            one.add_argument("--yes", action="store_true", help="delete; without it nothing is touched")


def list_datasets(arguments: argparse.Namespace) -> int:
    """List the datasets of a workdir and their versions; the newest of each has a star."""
    console, workdir = _console(), open_storage(arguments.workdir)
    references = read_references(workdir)
    keys = _keys(workdir, "")
    for number, key in enumerate(keys):
        rows = version_rows(key, _versions(workdir, key, references))
        _say(console, *[""] * (number > 0), *rows)
    if not keys:
        _say(console, f"{line(workdir.url)} holds no dataset")
    return EXIT_DONE


def show(arguments: argparse.Namespace) -> int:
    """Tell what datasets hold."""
    console, workdir = _console(), open_storage(arguments.workdir)
    references = read_references(workdir)
    for number, key in enumerate(_chosen(workdir, arguments.dataset)):
        versions = _versions(workdir, key, references)
        version = _pick(versions, arguments.version, key)
        contents = _contents(workdir.child(f"{DATASETS}/{key}")) if version.newest else None
        _say(console, *[""] * (number > 0), *version_lines(key, version, len(versions), contents))
    return EXIT_DONE


def verify_datasets(arguments: argparse.Namespace) -> int:
    """Compare every digest of the newest versions and decode every sample.

    Raises:
        DataError: Where anything is broken, once all has been looked at and everything broken is named.
    """
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected 1 or more")
    console, workdir = _console(), open_storage(arguments.workdir)
    broken = shards = samples = room = 0
    for key in _chosen(workdir, arguments.dataset):
        storage = workdir.child(f"{DATASETS}/{key}")
        for problem in _broken_records(storage):
            broken += 1
            _say(console, line(f"{key}: {problem}"))
        dataset = _readable(storage)
        with console.status("") as status:
            for shard, problem in verify(storage, dataset, arguments.workers) if dataset else ():
                shards, samples, room = shards + 1, samples + shard.samples, room + shard.bytes
                status.update(f"{key}: {plural(shards, 'shard')}, {size(room)}")
                if problem:
                    broken += 1
                    _say(console, line(f"{key}: {problem}"))
    _say(console, f"{plural(shards, 'shard')}, {plural(samples, 'sample')}, {size(room)} looked at")
    if broken:
        raise DataError(f"{plural(broken, 'thing')} broken, named above; delete them and run the pipeline again")
    return EXIT_DONE


def collect(arguments: argparse.Namespace, clock: Callable[[], float] = time.time) -> int:
    """Find what nobody refers to, and delete it if asked to."""
    console, workdir = _console(), open_storage(arguments.workdir)
    since = clock() - _age(arguments.older_than)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    try:
        with console.status("looking for what nobody refers to"):
            for garbage in find_garbage(workdir, lambda: keep(read_references(workdir), since), since):
                if arguments.yes:
                    remove(workdir, garbage)
                tally(garbage, found)
    except DarkroomError:
        if found:  # what is gone is to be told, whatever came then
            _say(console, *garbage_rows(found, deleted=arguments.yes))
        raise
    _say(console, *garbage_rows(found, deleted=arguments.yes))
    return EXIT_DONE


def _console() -> Console:
    return Console(highlight=False)


def _say(console: Console, *lines: str) -> None:
    for text in lines:
        console.print(text, markup=False, soft_wrap=True)


def _age(text: str) -> float:
    """Return a length of time in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ConfigError(f"--older-than {text!r}: expected a number and its unit, such as 30m, 12h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _keys(workdir: Storage, begins: str) -> list[str]:
    """Return the names of the datasets that were committed, whatever became of their newest version."""
    keys: dict[str, None] = {}
    for entry in workdir.list(DATASETS):
        _, key, *rest = entry.key.split("/")
        if key.startswith(begins) and rest and (rest == [KEY] or rest[0] == VERSIONS):
            keys[key] = None
    return list(keys)


def _chosen(workdir: Storage, begins: str) -> list[str]:
    keys = _keys(workdir, begins)
    if not keys:
        wanted = f"no dataset that begins with {begins!r}" if begins else "no dataset"
        raise DataError(f"{workdir.url} holds {wanted}; darkroom dataset ls lists what there is")
    return keys


def _versions(workdir: Storage, key: str, references: list[Reference]) -> list[Version]:
    """Return the versions of a dataset, the newest first."""
    storage = workdir.child(f"{DATASETS}/{key}")
    newest = read_dataset(storage)
    written = {newest.digest: 0.0} if newest else {}
    written |= {_digest(found.key): found.written for found in storage.list_dated(VERSIONS)}
    versions = []
    for digest, moment in written.items():
        used_by = tuple(reference.by for reference in references if digest in reference.versions)
        is_newest = newest is not None and digest == newest.digest
        versions.append(Version(read_version(storage, digest), moment, is_newest, used_by))
    return sorted(versions, key=lambda version: (version.newest, version.written), reverse=True)


def _pick(versions: list[Version], begins: str, key: str) -> Version:
    found = [version for version in versions if version.dataset.digest.startswith(begins)]
    if not found:
        raise DataError(f"dataset {key} has no version that begins with {begins!r}; darkroom dataset ls lists them")
    return found[0]


def _contents(storage: Storage) -> Contents:
    """Count what the newest version's records tell, group by group."""
    contents = Contents(Counter(), Counter(), Counter())
    for entry in storage.list("captions"):
        group = entry.key.removeprefix("captions/").removesuffix(".jsonl")
        if entry.key.endswith(".jsonl") and "." not in group:
            for record in read_accepted(storage, group):
                contents.licences[record.license or "unknown"] += 1
                contents.captions_by.update(author(caption.by) for caption in record.captions)
    if storage.exists(_REJECTED):
        contents.rejected.update(str(record.get("reason")) for record in storage.read_lines(_REJECTED))
    return contents


def _broken_records(storage: Storage) -> Iterator[str]:
    """Yield what is wrong with ``dataset.json`` and with each kept version."""
    for read in (lambda: read_dataset(storage), *(_reader(storage, found.key) for found in storage.list(VERSIONS))):
        try:
            read()
        except DataError as error:
            yield str(error)


def _reader(storage: Storage, key: str) -> Callable[[], Dataset]:
    return lambda: read_version(storage, _digest(key))


def _digest(key: str) -> str:
    return key.removeprefix(f"{VERSIONS}/").removesuffix(".json")


def _readable(storage: Storage) -> Dataset | None:
    try:
        return read_dataset(storage)
    except DataError:
        return None
