"""Finds what is damaged in a workdir: everything that is read back is compared with the digest that it has.

An *artifact* is a file, or some that only make sense together: a shard with its index, a model, a checkpoint. Folders
and files that nobody has finished are none, since no reader uses them: models and checkpoints without ``COMMIT``, tars
without an index. Logs, pages and drawn images are for people; of these only images carry sums that can be checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image

from components.accounting.ledger import LEDGER, read_ledger
from components.dataset import empty_prompt
from components.dataset.format import read_index
from components.dataset.integrity import check_shard, side_by_side
from components.dataset.versions import KEY, VERSIONS, Shard, read_committed, read_group
from components.digests import digest
from components.errors import DamagedFile, DarkroomError, DataError, NotFound
from components.image.records import images_key, ingest_rejections_key, read_manifest
from components.model import checkpoints
from components.model.champion import read_champion
from components.model.manifest import COMMIT, read_digests
from components.model.metric_results import EVALUATION, read_evaluation
from components.storage.base import Storage

_PIECE = 1 << 24  # bytes that are read of a file at a time
_ONCE = ("captions/", "datasets/", "ingest/")  # JSON Lines that are written at once, and end in a checksum


class Artifact(NamedTuple):
    """Something to check.

    Attributes:
        key: Its file or folder below the workdir.
        check: Raises a DarkroomError if it is damaged.
    """

    key: str
    check: Callable[[], object]


class Checked(NamedTuple):
    """An artifact, and what is wrong with it and what to do; an empty text if nothing is."""

    key: str
    problem: str


def check_workdir(workdir: Storage, workers: int) -> Iterator[Checked]:
    """Yield the result for each artifact of a workdir, in the order of their keys.

    Args:
        workdir: The storage of all files.
        workers: How many artifacts are checked at the same time.
    """

    def check(artifact: Artifact) -> Checked:
        try:
            artifact.check()
        except DarkroomError as error:
            return Checked(artifact.key, str(error))
        return Checked(artifact.key, "")

    yield from side_by_side(check, artifacts(workdir), workers)


def artifacts(workdir: Storage) -> Iterator[Artifact]:
    """Yield all artifacts of a workdir."""
    for entry in workdir.list():
        for pattern, artifact_of in _ARTIFACTS:
            if match := pattern.fullmatch(entry.key):
                if artifact := artifact_of(workdir, match):
                    yield artifact
                break


def _model(workdir: Storage, match: re.Match[str]) -> Artifact:
    model = workdir.child(match["model"])

    def check() -> None:
        for name, committed in read_digests(model).items():
            try:
                actual = _digest_object(model, name)
            except NotFound:
                raise _model_damage(model, f"{name} is missing") from None
            if actual != committed:
                raise _model_damage(model, f"{name} is not the file that was committed")

    return Artifact(match["model"], check)


def _model_damage(model: Storage, problem: str) -> DamagedFile:
    return DamagedFile(f"{problem}; restore it from a copy, or delete {model.url} and run the step that makes it again")


def _digest_object(storage: Storage, key: str) -> str:
    """Return the SHA-256 of an object, of which a piece at a time is in memory."""
    whole, size = hashlib.sha256(), storage.entry(key).size
    for start in range(0, size, _PIECE):
        whole.update(storage.read(key, start, _PIECE))
    return whole.hexdigest()


def _champion(workdir: Storage, match: re.Match[str]) -> Artifact:
    def check() -> None:
        if read_champion(workdir, match["name"]) is None:
            raise DamagedFile("the version that it names does not exist; delete it, and the next model is published")

    return Artifact(match[0], check)


def _checkpoint(workdir: Storage, match: re.Match[str]) -> Artifact:
    run, step = workdir.child(match["run"]), int(match["step"])

    def check() -> None:
        try:
            checkpoints.open_checkpoint(run, step).verify()
        except DataError as error:
            raise DamagedFile(f"{error}; delete its folder, and training goes on from the one before") from None

    return Artifact(f"{match['run']}/{checkpoints.folder(step)}", check)


def _shard(workdir: Storage, match: re.Match[str]) -> Artifact:
    dataset, name = workdir.child(match["dataset"]), match["shard"]

    def check() -> None:
        index = read_index(dataset, name)
        height, width = name.split("/")[1].split("x")
        check_shard(dataset, Shard(name, (int(height), int(width)), len(index.samples), index.bytes, index.sha256))

    return Artifact(f"{match['dataset']}/{name}", check)


def _version(workdir: Storage, match: re.Match[str]) -> Artifact:
    dataset = workdir.child(match["dataset"])

    def check() -> None:
        _check_shards_exist(dataset, [shard.name for shard in read_committed(dataset, match["file"]).shards])

    return Artifact(match[0], check)


def _group(workdir: Storage, match: re.Match[str]) -> Artifact:
    def check() -> None:
        group = read_group(workdir.child(match["records"]), match["group"])
        _check_shards_exist(workdir.child(match["dataset"]), group.shards if group else ())

    return Artifact(match[0], check)


def _check_shards_exist(dataset: Storage, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        if not dataset.exists(f"{name}.idx") or not dataset.exists(f"{name}.tar"):
            raise DamagedFile(f"shard {name} is missing; run latents and index again")


def _empty_prompt(workdir: Storage, match: re.Match[str]) -> Artifact:
    return Artifact(match[0], lambda: empty_prompt.read_empty_prompt(workdir.child(match["dataset"])))


def _manifest(workdir: Storage, match: re.Match[str]) -> Artifact:
    source_id = match["source"]

    def check() -> None:
        manifest = read_manifest(workdir, source_id)
        for key in (*(images_key(source_id, group) for group in manifest.groups), ingest_rejections_key(source_id)):
            if not workdir.exists(key):
                raise DamagedFile(f"{key} is missing; run the ingest step again")
        try:
            groups = {group: digest(_records(workdir, images_key(source_id, group))) for group in manifest.groups}
        except DamagedFile:
            return  # that file is an artifact of its own
        if digest(groups) != manifest.digest:
            raise DamagedFile("its groups are not those that it was written for; delete it and run ingest again")

    return Artifact(match[0], check)


def _records(workdir: Storage, key: str) -> list[dict[str, Any]]:
    return list(workdir.read_records(key))


def _ledger(workdir: Storage, match: re.Match[str]) -> Artifact:
    return Artifact(match[0], lambda: read_ledger(workdir.child(match["run"])))


def _events(workdir: Storage, match: re.Match[str]) -> Artifact:
    """Check a run's events; and its ledger, which must exist if they say that an attempt has ended."""
    run = workdir.child(match["run"])

    def check() -> None:
        _whole_lines(workdir, match[0])
        if not run.exists(LEDGER):
            read_ledger(run)

    return Artifact(match[0], check)


def _no_artifact(_workdir: Storage, _match: re.Match[str]) -> None:
    return None


def _evaluation(workdir: Storage, match: re.Match[str]) -> Artifact:
    return Artifact(match[0], lambda: read_evaluation(workdir.child(match["run"])))


def _lines(workdir: Storage, match: re.Match[str]) -> Artifact:
    key = match[0]
    return Artifact(key, lambda: _records(workdir, key) if key.startswith(_ONCE) else _whole_lines(workdir, key))


def _import(workdir: Storage, match: re.Match[str]) -> Artifact:
    def check() -> None:
        made = _records(workdir, match[0])[0]
        tar = f"{match['part']}.tar"
        if made.get("images") and (not workdir.exists(tar) or _digest_object(workdir, tar) != made["sha256"]):
            raise DamagedFile(f"{tar} is not what was imported; delete both files and run the ingest step again")

    return Artifact(match[0], check)


def _whole_lines(workdir: Storage, key: str) -> list[dict[str, Any]]:
    """Return the lines of a file that grows, without a last one that its writer is writing, or was killed in."""
    *lines, _ = workdir.read(key).split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"line {number} is not JSON ({error}); delete that line") from None
        if not isinstance(value, dict):
            raise DamagedFile(f"line {number} is no JSON object; delete that line")
        values.append(value)
    return values


def _json(workdir: Storage, match: re.Match[str]) -> Artifact:
    return Artifact(match[0], lambda: workdir.read_json(match[0]))


def _image(workdir: Storage, match: re.Match[str]) -> Artifact:
    def check() -> None:
        try:
            with Image.open(io.BytesIO(workdir.read(match[0])), formats=("PNG",)) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError) as error:
            raise DamagedFile(f"it is no PNG ({error}); delete it, and run the step that draws it again") from None

    return Artifact(match[0], check)


# By the first pattern that a key matches.
_ARTIFACTS: tuple[tuple[re.Pattern[str], Callable[[Storage, re.Match[str]], Artifact | None]], ...] = tuple(
    (re.compile(pattern), artifact_of)
    for pattern, artifact_of in (
        (rf"(?P<model>models/.+)/{COMMIT}", _model),
        (r"models/(?P<name>[^/]+)/champion\.json", _champion),
        (r"models/.*", _no_artifact),  # files of models
        (rf"(?P<run>runs/[^/]+)/checkpoints/step-(?P<step>\d+)/{COMMIT}", _checkpoint),
        (r"runs/[^/]+/checkpoints/.*", _no_artifact),
        (r"(?P<run>runs/[^/]+)/events\.jsonl", _events),
        (rf"(?P<run>runs/[^/]+)/{re.escape(LEDGER)}", _ledger),
        (rf"(?P<run>runs/[^/]+)/{re.escape(EVALUATION)}", _evaluation),
        (r"(?P<dataset>datasets/[^/]+)/(?P<shard>shards/\d+x\d+/[^/]+)\.idx", _shard),
        (rf"(?P<dataset>datasets/[^/]+)/(?P<file>(?:.*/)?{re.escape(KEY)}|{VERSIONS}/[^/]+\.json)", _version),
        (r"(?P<records>(?P<dataset>datasets/[^/]+)(?:/.*)?)/groups/(?P<group>[^/.]+)\.json", _group),
        (rf"(?P<dataset>datasets/[^/]+)/{re.escape(empty_prompt.KEY)}", _empty_prompt),
        (r"ingest/(?P<source>[^/]+)/manifest\.json", _manifest),
        (r"(?P<part>imports/.+)\.jsonl", _import),
        (r".*\.jsonl", _lines),
        (r".*\.json", _json),
        (r".*\.png", _image),
    )
)
