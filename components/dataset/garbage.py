"""What no run and no published model refers to: found folder by folder, deleted so that no reader trusts half of it.

Nothing that was written within the time of grace is touched, nor anything of a dataset that belongs to a run which
has written within it; a run that has not said yet which dataset it uses keeps all of them. Keys are told while they
are listed, so that memory does not grow with what there is.

Deleting can be killed at any moment: a dataset loses ``dataset.json`` first, a shard its index, a model its ``COMMIT``.
What is left is garbage the next time, too. A shard that somebody needs again is simply encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

from components.dataset.references import BASES, Kept
from components.dataset.versions import KEY, VERSIONS, read_dataset, read_encoding, read_version
from components.digests import digest
from components.errors import DataError, NotFound
from components.model.locations import COMMIT
from components.storage.base import Storage, Unfinished

DATASETS = "datasets"


@dataclass(frozen=True)
class Garbage:
    """One object, folder or upload that nobody needs.

    Attributes:
        kind: What it is, for a person: ``dataset``, ``version``, ``shard``, ``base model``, ``unfinished model``,
            ``unfinished write``.
        place: The folder that a person knows it by, below the workdir.
        bytes: How much room it takes.
        key: The object; or, for a whole folder, the one that is deleted before all others.
        folder: Whether all of ``place`` goes.
        unfinished: What to discard, where it is no object.
    """

    kind: str
    place: str
    bytes: int
    key: str = ""
    folder: bool = False
    unfinished: Unfinished | None = None


@dataclass
class Folder:
    """What a listing tells of one folder.

    Attributes:
        bytes: Size of all that is in it.
        written: When something in it was last written.
        names: Keys of its few objects that matter, relative to it.
    """

    bytes: int
    written: float
    names: set[str]


def find_garbage(workdir: Storage, look: Callable[[], Kept], since: float) -> Iterator[Garbage]:
    """Yield what may be deleted.

    Args:
        workdir: Where everything is kept.
        look: Reads what must stay; called again for each folder, for a run may have begun meanwhile.
        since: What was written since then stays, in seconds since 1970 by the store's clock.
    """
    survivors = []
    for key, folder in folders(workdir, DATASETS, lambda name: name == KEY or name.startswith(f"{VERSIONS}/")).items():
        place = f"{DATASETS}/{key}"
        dataset = workdir.child(place)
        kept = look()
        wanted = wanted_versions(key, _committed(dataset, folder.names), folder.written, kept, since)
        if wanted is not None and not wanted:
            yield Garbage("dataset", place, folder.bytes, key=f"{place}/{KEY}", folder=True)
            continue
        survivors.append(key)
        if wanted is not None:
            yield from _leftovers(dataset, place, wanted, since)
    yield from _models(workdir, look(), survivors, since)
    for found in workdir.list_unfinished():
        if found.written < since:
            yield Garbage("unfinished write", found.key, found.size, unfinished=found)


def wanted_versions(
    key: str, committed: Mapping[str, bool], written: float, kept: Kept, since: float
) -> frozenset[str] | None:
    """Return which versions of a dataset stay: none of them where all of it may go, None where nothing may be touched.

    Args:
        key: The dataset's name.
        committed: The digests of its versions, and whether each is the newest.
        written: When something of it was last written.
        kept: What must stay.
        since: What was written since then stays.
    """
    if kept.everything or key in kept.busy:
        return None
    used = kept.versions & committed.keys()
    if key not in kept.encodings and not used:
        return None if written >= since else frozenset()
    newest = {version for version, is_newest in committed.items() if is_newest}
    # A dataset that was never committed has no version to stay; that it is used is reason enough to leave it alone.
    return frozenset(used | newest) or None


def is_leftover(key: str, versions: Set[str], shards: Set[str]) -> str:
    """Return what kind of garbage an object of a dataset is, or nothing where it stays.

    Args:
        key: Its key below the dataset's folder.
        versions: Keys of the versions that stay.
        shards: Names of the shards that stay.
    """
    if key.startswith(f"{VERSIONS}/"):
        return "" if key in versions else "version"
    name, _, suffix = key.rpartition(".")
    if key.startswith("shards/") and suffix in ("tar", "idx"):
        return "" if name in shards else "shard"
    return ""


def folders(storage: Storage, top: str, matters: Callable[[str], bool]) -> dict[str, Folder]:
    """Return the folders right below one, by name, with what matters of what they hold."""
    found: dict[str, Folder] = {}
    for entry in storage.list_dated(top):
        name, slash, rest = entry.key.removeprefix(f"{top}/").partition("/")
        if slash:
            folder = found.setdefault(name, Folder(0, 0.0, set()))
            folder.bytes += entry.size
            folder.written = max(folder.written, entry.written)
            if matters(rest):
                folder.names.add(rest)
    return found


def remove(workdir: Storage, garbage: Garbage) -> None:
    """Delete garbage; what makes readers trust the rest goes first."""
    if garbage.unfinished is not None:
        workdir.discard(garbage.unfinished)
        return
    workdir.delete(garbage.key)
    if garbage.folder:
        workdir.delete_tree(garbage.place)


def _committed(dataset: Storage, names: Iterable[str]) -> dict[str, bool]:
    """Return the digests of a dataset's versions, and whether each is the newest."""
    versions = (name.removeprefix(f"{VERSIONS}/").removesuffix(".json") for name in names if name != KEY)
    newest = read_dataset(dataset)
    return dict.fromkeys(versions, False) | ({newest.digest: True} if newest else {})


def _leftovers(dataset: Storage, place: str, wanted: Set[str], since: float) -> Iterator[Garbage]:
    """Yield the versions of a dataset that nobody wants, and the shards that no other version and no group holds."""
    shards = {shard.name for version in wanted for shard in read_version(dataset, version).shards}
    for found in dataset.list("groups"):
        if found.key.endswith(".json"):
            shards.update(_shards_of_group(dataset, found.key))
    versions = {f"{VERSIONS}/{version}.json" for version in wanted}
    # A version goes before the shards that only it has.
    for entry in chain(dataset.list_dated(VERSIONS), dataset.list_dated("shards")):
        if entry.written < since and (kind := is_leftover(entry.key, versions, shards)):
            yield Garbage(kind, place, entry.size, key=f"{place}/{entry.key}")


def _shards_of_group(dataset: Storage, key: str) -> list[str]:
    value: Any = dataset.read_json(key)
    try:
        return [str(name) for name in value["shards"]]
    except (KeyError, TypeError):
        raise DataError(f"{key} in {dataset.url} is damaged; delete it and run the latents step again") from None


def _models(workdir: Storage, kept: Kept, datasets: Iterable[str], since: float) -> Iterator[Garbage]:
    """Yield base models that no run and no dataset uses, and models that were never finished."""
    encoders = [_encoders(workdir.child(f"{DATASETS}/{key}")) for key in datasets]
    for key, folder in folders(workdir, BASES, lambda name: name == COMMIT).items():
        place = f"{BASES}/{key}"
        if kept.everything or key in kept.bases or folder.written >= since:
            continue
        if not folder.names:
            yield Garbage("unfinished model", place, folder.bytes, key=f"{place}/{COMMIT}", folder=True)
        elif not any(uses_encoders(made_from, _files(workdir, place)) for made_from in encoders):
            yield Garbage("base model", place, folder.bytes, key=f"{place}/{COMMIT}", folder=True)
    for name in {entry.key.split("/")[1] for entry in workdir.list("models")} - {"base"}:
        for version, folder in folders(workdir, f"models/{name}", lambda name: name == COMMIT).items():
            place = f"models/{name}/{version}"
            if not folder.names and folder.written < since:
                yield Garbage("unfinished model", place, folder.bytes, key=f"{place}/{COMMIT}", folder=True)


def uses_encoders(made_from: Mapping[str, str], files: Mapping[str, str]) -> bool:
    """Tell whether a dataset was encoded with the encoders of a model.

    Args:
        made_from: For each encoder of the dataset its digest, as `components.digests.digest_tree` gives it.
        files: The model's files and their SHA-256.
    """
    parts = {
        part: digest({name: sha256 for name, sha256 in files.items() if name.startswith(f"{part}/")})
        for part in made_from
    }
    return bool(made_from) and parts == dict(made_from)


def _encoders(dataset: Storage) -> dict[str, str]:
    try:
        models = read_encoding(dataset).get("models", {})
    except DataError:  # the latents step has not come to it
        return {}
    return dict(models) if isinstance(models, dict) else {}


def _files(workdir: Storage, place: str) -> dict[str, str]:
    try:
        return dict(workdir.read_json(f"{place}/{COMMIT}")["sha256"])
    except (NotFound, DataError, KeyError, TypeError, ValueError):
        return {}
