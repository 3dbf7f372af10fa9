"""``darkroom dataset``: list the datasets of a workdir, show and verify them, delete what nothing uses."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from rich.console import Console
from rich.status import Status

from components.dataset.garbage import DATASETS, find_garbage, remove
from components.dataset.integrity import verify
from components.dataset.references import Reference, in_use, read_references
from components.dataset.versions import (
    KEY,
    SETS,
    VERSIONS,
    Dataset,
    newest_keys,
    read_dataset,
    read_newest,
    read_version,
    records_of,
)
from components.errors import EXIT_DONE, ConfigError, DarkroomError, DataError
from components.image.authors import author
from components.image.records import captions_prefix, read_accepted
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.command_line import Parser, Verb, add_json, add_verb, add_verbs, print_json, whole_number
from pipeline.datasets.documents import VERSION_KEYS, dataset_document, garbage_document, version_document
from pipeline.datasets.tables import Contents, DatasetVersion, garbage_rows, size, tally, version_lines, version_rows
from pipeline.messages import line, plural

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_REJECTED = "rejected.jsonl"


def add_dataset(all_verbs: Any) -> None:
    """Add ``dataset`` with its verbs ``ls``, ``show``, ``verify`` and ``gc``."""
    verbs = add_verbs(
        all_verbs.add_parser("dataset", help="list, show and verify encoded datasets; delete unused data")
    )
    listing = _verb(verbs, "ls", "list the datasets and their versions", list_datasets, "darkroom dataset ls")
    add_json(listing, workdir="its address", datasets=f"each dataset: name, versions; each version: {VERSION_KEYS}")
    showing = _verb(verbs, "show", "show what a dataset holds", show, "darkroom dataset show 1a2b --workdir workdir")
    _add_name(showing)
    showing.add_argument("--version", default="", help="digest, or the beginning of it (default: the newest)")
    add_json(
        showing,
        workdir="its address",
        datasets=f"each dataset: name, versions (their number), version ({VERSION_KEYS}, buckets, encoding), and of "
        "the newest captions_by, licences, rejected",
    )
    checking = _verb(
        verbs,
        "verify",
        "check every digest and decode every sample",
        verify_datasets,
        "darkroom dataset verify --workdir s3://bucket/darkroom --workers 16",
    )
    _add_name(checking)
    checking.add_argument(
        "--workers", type=whole_number(1, 1024), default=4, help="shards at the same time (default: %(default)s)"
    )
    add_json(checking, shards="shards checked", samples="samples decoded", bytes="bytes read", problems="sentences")
    cleaning = _verb(
        verbs,
        "gc",
        "delete what no run and no published model uses",
        collect,
        "darkroom dataset gc",
        "darkroom dataset gc --older-than 7d --yes",
    )
    cleaning.add_argument(
        "--older-than", default="1d", metavar="TIME", help="keep what is newer, such as 12h or 7d (default: 1d)"
    )
    cleaning.add_argument("--yes", action="store_true", help="delete; without it, only list what could be deleted")
    add_json(cleaning, deleted="whether it was deleted", bytes="in all", garbage="folder, kind, pieces, bytes of each")


def _verb(verbs: Any, name: str, summary: str, verb: Verb, *examples: str) -> Parser:
    parser = add_verb(verbs, name, summary, verb, examples)
    parser.add_argument("--workdir", default="workdir", help="folder or s3://bucket/prefix (default: %(default)s)")
    return parser


def _add_name(parser: Parser) -> None:
    parser.add_argument("dataset", nargs="?", default="", help="its name, or the beginning of it (default: all)")


def list_datasets(arguments: argparse.Namespace) -> int:
    """List the datasets of a workdir and their versions; the newest of each has a star."""
    console, workdir = _console(), open_storage(arguments.workdir)
    references = read_references(workdir)
    keys = _keys(workdir, "")
    if arguments.json:
        versions = {key: _versions(workdir, key, references) for key in keys}
        listed = [{"name": key, "versions": [version_document(one) for one in versions[key]]} for key in keys]
        print_json({"workdir": workdir.url, "datasets": listed})
        return EXIT_DONE
    for number, key in enumerate(keys):
        rows = version_rows(key, _versions(workdir, key, references))
        _print(console, *[""] * (number > 0), *rows)
    if not keys:
        _print(console, f"{line(workdir.url)} holds no dataset")
    return EXIT_DONE


def show(arguments: argparse.Namespace) -> int:
    """Show what datasets hold."""
    console, workdir = _console(), open_storage(arguments.workdir)
    references = read_references(workdir)
    documents, number = [], 0
    for key in _matching_keys(workdir, arguments.dataset):
        versions = _versions(workdir, key, references)
        for version in _chosen(versions, arguments.version, key):
            contents = _contents(workdir, key, version.dataset.caption_set) if version.newest else None
            if arguments.json:
                documents.append(dataset_document(key, version, len(versions), contents))
            else:
                _print(console, *[""] * (number > 0), *version_lines(key, version, len(versions), contents))
            number += 1
    if arguments.json:
        print_json({"workdir": workdir.url, "datasets": documents})
    return EXIT_DONE


def verify_datasets(arguments: argparse.Namespace) -> int:
    """Check every digest of the newest versions and decode every sample.

    Raises:
        DataError: If anything is broken, after all is checked and everything broken is named.
    """
    console, workdir = _console(), open_storage(arguments.workdir)
    problems: list[str] = []
    shards = samples = total_bytes = 0

    def add_problem(text: str) -> None:
        problems.append(text)
        if not arguments.json:
            _print(console, line(text))

    for key in _matching_keys(workdir, arguments.dataset):
        storage = workdir.child(f"{DATASETS}/{key}")
        for problem in _broken_records(storage):
            add_problem(f"{key}: {problem}")
        newest = list(_readable(storage))
        with _status(console, "", arguments.json) as status:
            for shard, flaw in chain.from_iterable(verify(storage, one, arguments.workers) for one in newest):
                shards, samples, total_bytes = shards + 1, samples + shard.samples, total_bytes + shard.bytes
                status.update(f"{key}: {plural(shards, 'shard')}, {size(total_bytes)}")
                if flaw:
                    add_problem(f"{key}: {flaw}")
    if arguments.json:
        print_json({"shards": shards, "samples": samples, "bytes": total_bytes, "problems": problems})
    else:
        _print(console, f"{plural(shards, 'shard')}, {plural(samples, 'sample')}, {size(total_bytes)} checked")
    if problems:
        named = f"{plural(len(problems), 'problem')}, named above"
        raise DataError(f"{named}; delete what is broken and run the pipeline again")
    return EXIT_DONE


def collect(arguments: argparse.Namespace, clock: Callable[[], float] = time.time) -> int:
    """Find what nothing uses, and delete it with ``--yes``."""
    console, workdir = _console(), open_storage(arguments.workdir)
    since = clock() - _age(arguments.older_than)
    counts: dict[tuple[str, str], tuple[int, int]] = {}

    def tell() -> None:
        if arguments.json:
            print_json(garbage_document(counts, deleted=arguments.yes))
        else:
            _print(console, *garbage_rows(counts, deleted=arguments.yes))

    try:
        with _status(console, "looking for what nothing uses", arguments.json):
            for garbage in find_garbage(workdir, lambda: in_use(read_references(workdir), since), since):
                if arguments.yes:
                    remove(workdir, garbage)
                tally(garbage, counts)
    except DarkroomError:
        if counts:  # report what was deleted before the error
            tell()
        raise
    tell()
    return EXIT_DONE


def _status(console: Console, text: str, quiet: bool) -> Status:
    """Return a line that says what is being done; not on standard output if a document goes there."""
    return (Console(stderr=True, highlight=False) if quiet else console).status(text)


def _console() -> Console:
    return Console(highlight=False)


def _print(console: Console, *lines: str) -> None:
    for text in lines:
        console.print(text, markup=False, soft_wrap=True)


def _age(text: str) -> float:
    """Return a length of time in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ConfigError(f"--older-than {text!r}: expected a number and a unit, such as 30m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def _keys(workdir: Storage, beginning: str) -> list[str]:
    """Return the names of all committed datasets, also of those whose newest version is broken."""
    keys: dict[str, None] = {}
    for entry in workdir.list(DATASETS):
        _, key, *rest = entry.key.split("/")
        if key.startswith(beginning) and rest and (rest == [KEY] or rest[0] in (VERSIONS, SETS)):
            keys[key] = None
    return list(keys)


def _matching_keys(workdir: Storage, beginning: str) -> list[str]:
    keys = _keys(workdir, beginning)
    if not keys:
        missing = f"no dataset that begins with {beginning!r}" if beginning else "no dataset"
        raise DataError(f"{workdir.url} holds {missing}; darkroom dataset ls lists all")
    return keys


def _versions(workdir: Storage, key: str, references: list[Reference]) -> list[DatasetVersion]:
    """Return the versions of a dataset, the newest first."""
    storage = workdir.child(f"{DATASETS}/{key}")
    newest = {dataset.digest for dataset in read_newest(storage)}
    written = dict.fromkeys(newest, 0.0)
    written |= {_digest(entry.key): entry.written for entry in storage.list_dated(VERSIONS)}
    versions = []
    for digest, time_written in written.items():
        used_by = tuple(reference.by for reference in references if digest in reference.versions)
        versions.append(DatasetVersion(read_version(storage, digest), time_written, digest in newest, used_by))
    return sorted(versions, key=lambda version: (version.newest, version.written), reverse=True)


def _chosen(versions: list[DatasetVersion], beginning: str, key: str) -> list[DatasetVersion]:
    """Return the version with a digest, or, if none is asked for, the newest of each caption set."""
    matches = [version for version in versions if version.dataset.digest.startswith(beginning)]
    if not matches:
        raise DataError(f"dataset {key} has no version that begins with {beginning!r}; darkroom dataset ls lists all")
    newest = [version for version in versions if version.newest]
    return matches[:1] if beginning or not newest else newest


def _contents(workdir: Storage, key: str, caption_set: str) -> Contents:
    """Count captions by author, licences and rejections over the records of a caption set's newest version."""
    contents = Contents(Counter(), Counter(), Counter())
    captions = workdir.child(captions_prefix(caption_set))
    for entry in captions.list():
        group = entry.key.removesuffix(".jsonl")
        if entry.key.endswith(".jsonl") and not {".", "/"} & set(group):
            for record in read_accepted(captions, group):
                contents.licences[record.license or "unknown"] += 1
                contents.captions_by.update(author(caption.by) for caption in record.captions)
    records = records_of(workdir.child(f"{DATASETS}/{key}"), caption_set)
    if records.exists(_REJECTED):
        contents.rejected.update(str(record.get("reason")) for record in records.read_records(_REJECTED))
    return contents


def _broken_records(storage: Storage) -> Iterator[str]:
    """Yield what is wrong with each ``dataset.json`` and with each kept version."""
    newest = [partial(read_dataset, storage, caption_set) for caption_set in newest_keys(storage)]
    versions = [partial(read_version, storage, _digest(entry.key)) for entry in storage.list(VERSIONS)]
    for read in chain[Callable[[], object]](newest, versions):
        try:
            read()
        except DataError as error:
            yield str(error)


def _digest(key: str) -> str:
    return key.removeprefix(f"{VERSIONS}/").removesuffix(".json")


def _readable(storage: Storage) -> Iterator[Dataset]:
    """Yield the newest versions that can be read, each without the shards of those before: sets share shards."""
    earlier: set[str] = set()
    for caption_set in newest_keys(storage):
        with suppress(DataError):
            if dataset := read_dataset(storage, caption_set):
                yield replace(dataset, shards=tuple(shard for shard in dataset.shards if shard.name not in earlier))
                earlier.update(shard.name for shard in dataset.shards)
