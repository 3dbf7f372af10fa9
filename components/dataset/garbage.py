"""Garbage collection: lists, folder by folder, what no run and no published model refers to, and deletes it.

Nothing that was written within the grace period is deleted, nor anything of a dataset whose run has written within it.
While an active run has not recorded yet which dataset it uses, all datasets and captions stay. Shards are shared by the
caption sets of a dataset: one stays as long as any of them lists it. Garbage is yielded while keys are
listed, so memory does not grow with the size of the workdir.

Deleting can be killed at any moment: a dataset loses each ``dataset.json`` first, a shard its index, a model its
``COMMIT``, so that no reader uses a half-deleted one; the rest is garbage in the next run too. A shard that is needed
again is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

from components.dataset.encoding_record import read_encoding
from components.dataset.references import BASES, InUse
from components.dataset.versions import GROUPS, KEY, SETS, VERSIONS, read_dataset, read_version, records_of
from components.digests import digest
from components.errors import DataError, NotFound
from components.model.manifest import COMMIT, read_digests
from components.storage.base import Storage, Unfinished

DATASETS = "datasets"
CAPTIONS = "captions"
STATE = "clean.json"  # in a caption set's folder: what its other files were made from


@dataclass(frozen=True)
class Garbage:
    """One object, folder or upload that nothing refers to.

    Attributes:
        kind: What it is, for messages: ``dataset``, ``version``, ``shard``, ``captions``, ``base model``,
            ``unfinished model``, ``unfinished write``.
        path: The folder to show in messages, below the workdir.
        bytes: Its size.
        key: The object; or, for a whole folder, the one that is deleted before all others.
        folder: Whether the whole folder ``path`` is deleted.
        unfinished: The unfinished write to discard, if it is no object.
    """

    kind: str
    path: str
    bytes: int
    key: str = ""
    folder: bool = False
    unfinished: Unfinished | None = None


@dataclass
class SetFolder:
    """What a dataset's folder holds of one caption set alone.

    Attributes:
        stays: Whether a run or a version in use needs it, or it is too recent to tell.
        bytes: Total size of its objects.
    """

    stays: bool
    bytes: int = 0


@dataclass
class Folder:
    """One folder, as a listing shows it.

    Attributes:
        bytes: Total size of its objects.
        written: When something in it was last written.
        names: Keys of selected objects in it, relative to it.
    """

    bytes: int
    written: float
    names: set[str]


def find_garbage(workdir: Storage, read_in_use: Callable[[], InUse], since: float) -> Iterator[Garbage]:
    """Yield what may be deleted.

    Args:
        workdir: The storage of all files.
        read_in_use: Reads what must stay; it is called again for each folder, for a run may have begun meanwhile.
        since: What was written since then stays, in seconds since 1970 by the store's clock.
    """
    remaining: list[str] = []
    caption_sets: set[str] = set()
    for key, folder in folders(workdir, DATASETS, lambda name: name.startswith(f"{VERSIONS}/")).items():
        path = f"{DATASETS}/{key}"
        dataset = workdir.child(path)
        used = read_in_use()
        digests = {name.removeprefix(f"{VERSIONS}/").removesuffix(".json") for name in folder.names}
        sets = _sets(dataset, digests, used, since)
        versions = versions_to_keep(key, _committed(dataset, digests, sets), folder.written, used, since)
        if versions is not None and not versions:
            yield Garbage("dataset", path, folder.bytes, key=f"{path}/{KEY}", folder=True)
            continue
        remaining.append(key)
        caption_sets |= {name for name, folder in sets.items() if folder.stays or versions is None}
        if versions is not None:
            for name in sorted(name for name, folder in sets.items() if not folder.stays):
                records = f"{path}/{SETS}/{name}"
                yield Garbage("dataset", records, sets[name].bytes, key=f"{records}/{KEY}", folder=True)
            yield from _unused_objects(dataset, path, versions, sets, since)
    yield from _captions(workdir, read_in_use(), caption_sets, since)
    yield from _models(workdir, read_in_use(), remaining, since)
    for unfinished in workdir.list_unfinished():
        if unfinished.written < since:
            yield Garbage("unfinished write", unfinished.key, unfinished.size, unfinished=unfinished)


def versions_to_keep(
    key: str, committed: Mapping[str, bool], written: float, used: InUse, since: float
) -> frozenset[str] | None:
    """Return which versions of a dataset stay: none if all of it may be deleted, None if nothing of it may be.

    Args:
        key: The dataset's name.
        committed: The digests of its versions, and whether each is the newest.
        written: When something of it was last written.
        used: What must stay.
        since: What was written since then stays.
    """
    if used.everything or key in used.busy:
        return None
    versions = used.versions & committed.keys()
    if key not in used.encodings and not versions:
        return None if written >= since else frozenset()
    newest = {version for version, is_newest in committed.items() if is_newest}
    # A dataset that was never committed has no version to keep; since it is used, nothing of it may be deleted.
    return frozenset(versions | newest) or None


def garbage_kind(key: str, versions: Set[str], shards: Set[str]) -> str:
    """Return what kind of garbage an object of a dataset is; an empty text if it stays.

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
    """Return the folders directly below one, by name; ``matters`` selects the keys that they remember."""
    result: dict[str, Folder] = {}
    for entry in storage.list_dated(top):
        name, slash, rest = entry.key.removeprefix(f"{top}/").partition("/")
        if slash:
            folder = result.setdefault(name, Folder(0, 0.0, set()))
            folder.bytes += entry.size
            folder.written = max(folder.written, entry.written)
            if matters(rest):
                folder.names.add(rest)
    return result


def remove(workdir: Storage, garbage: Garbage) -> None:
    """Delete garbage, first the object without which readers do not use the rest."""
    if garbage.unfinished is not None:
        workdir.discard(garbage.unfinished)
        return
    workdir.delete(garbage.key)
    if garbage.folder:
        for entry in workdir.list(f"{garbage.path}/{SETS}"):  # a dataset's folder has one newest version per set
            if entry.key.endswith(f"/{KEY}"):
                workdir.delete(entry.key)
        workdir.delete_tree(garbage.path)


def _sets(dataset: Storage, digests: Set[str], used: InUse, since: float) -> dict[str, SetFolder]:
    """Return the caption sets of a dataset; one with the empty name is for what older workdirs have beside them."""
    in_versions = {read_version(dataset, version).caption_set for version in used.versions & digests}
    sets = {"": SetFolder(stays=True)}
    for entry in dataset.list_dated(SETS):
        name = "/".join(entry.key.split("/")[1:3])
        folder = sets.setdefault(name, SetFolder(name in used.caption_sets or name in in_versions))
        folder.bytes += entry.size
        folder.stays = folder.stays or entry.written >= since
    return sets


def _committed(dataset: Storage, digests: Set[str], sets: Mapping[str, SetFolder]) -> dict[str, bool]:
    """Return the digests of a dataset's versions, and whether each is the newest of a caption set that stays."""
    newest = [read_dataset(dataset, name) for name, folder in sets.items() if folder.stays]
    return dict.fromkeys(digests, False) | {one.digest: True for one in newest if one is not None}


def _unused_objects(
    dataset: Storage, path: str, keep: Set[str], sets: Mapping[str, SetFolder], since: float
) -> Iterator[Garbage]:
    """Yield the versions of a dataset that are not kept, and the shards that no kept version and no group lists."""
    shards = {shard.name for version in keep for shard in read_version(dataset, version).shards}
    for name in (name for name, folder in sets.items() if folder.stays):
        for entry in records_of(dataset, name).list(GROUPS):
            if entry.key.endswith(".json"):
                shards.update(_shards_of_group(records_of(dataset, name), entry.key))
    versions = {f"{VERSIONS}/{version}.json" for version in keep}
    # A version is deleted before the shards that only it lists.
    for dated in chain(dataset.list_dated(VERSIONS), dataset.list_dated("shards")):
        if dated.written < since and (kind := garbage_kind(dated.key, versions, shards)):
            yield Garbage(kind, path, dated.size, key=f"{path}/{dated.key}")


def _shards_of_group(records: Storage, key: str) -> list[str]:
    value: Any = records.read_json(key)
    try:
        return [str(name) for name in value["shards"]]
    except (KeyError, TypeError):
        raise DataError(f"{key} in {records.url} is damaged; delete it and run the latents step again") from None


def _captions(workdir: Storage, used: InUse, kept: Set[str], since: float) -> Iterator[Garbage]:
    """Yield the captions that no run uses and no dataset was made from."""
    if used.everything:
        return
    for source in {entry.key.split("/")[1] for entry in workdir.list(CAPTIONS)}:
        for key, folder in folders(workdir, f"{CAPTIONS}/{source}", lambda _name: False).items():
            name, path = f"{source}/{key}", f"{CAPTIONS}/{source}/{key}"
            if name not in used.caption_sets and name not in kept and folder.written < since:
                yield Garbage("captions", path, folder.bytes, key=f"{path}/{STATE}", folder=True)


def _models(workdir: Storage, used: InUse, datasets: Iterable[str], since: float) -> Iterator[Garbage]:
    """Yield base models that no run and no dataset uses, and models that were never finished."""
    encoders = [_encoders(workdir.child(f"{DATASETS}/{key}")) for key in datasets]
    for key, folder in folders(workdir, BASES, lambda name: name == COMMIT).items():
        path = f"{BASES}/{key}"
        if used.everything or key in used.bases or folder.written >= since:
            continue
        if not folder.names:
            yield Garbage("unfinished model", path, folder.bytes, key=f"{path}/{COMMIT}", folder=True)
        elif not any(uses_encoders(made_from, _files(workdir, path)) for made_from in encoders):
            yield Garbage("base model", path, folder.bytes, key=f"{path}/{COMMIT}", folder=True)
    for name in {entry.key.split("/")[1] for entry in workdir.list("models")} - {"base"}:
        for version, folder in folders(workdir, f"models/{name}", lambda name: name == COMMIT).items():
            path = f"models/{name}/{version}"
            if not folder.names and folder.written < since:
                yield Garbage("unfinished model", path, folder.bytes, key=f"{path}/{COMMIT}", folder=True)


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
    except DataError:  # the latents step has not written it yet
        return {}
    return dict(models) if isinstance(models, dict) else {}


def _files(workdir: Storage, path: str) -> dict[str, str]:
    try:
        return read_digests(workdir.child(path))
    except (NotFound, DataError):
        return {}
