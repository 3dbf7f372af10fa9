"""Checkpoints on storage: written in parts by every rank, whole only once committed, readable at any world size.

```
checkpoints/step-000001200/rank-00000.safetensors   the pieces of every parameter that this rank holds
                           rank-00000.json          which pieces, and the part's SHA-256
                           manifest.json            step, identity of the training, shapes, all parts
                           COMMIT                   SHA-256 of the manifest; written last
```

A *piece* is a range of a flattened parameter together with its optimizer moments and its moving average. Pieces of
all ranks tile every parameter, so a reader takes the ranges that it needs from whichever parts hold them, and the
world size and the ZeRO stage that wrote a checkpoint do not matter to the one that loads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.digests import sha256
from components.errors import DataError, NotFound
from components.storage.base import Storage

FORMAT = 2
StateKind = Literal["master", "exp_avg", "exp_avg_sq", "ema"]
# A counter: the share of the base's weights in the moving average. Checkpoints of earlier versions lack it.
BASE_SHARE = "base_share"
KINDS: tuple[StateKind, ...] = ("master", "exp_avg", "exp_avg_sq", "ema")


@dataclass(frozen=True)
class Piece:
    """A range of one flattened parameter, with all arrays that are saved for it.

    Attributes:
        name: The parameter's name in the UNet's state dict.
        start: Index of its first element in the flattened parameter.
        arrays: One float32 array of equal length ``[n]`` per kind.
    """

    name: str
    start: int
    arrays: Mapping[StateKind, NDArray[np.float32]]


def folder(step: int) -> str:
    """Return the key below the run under which the checkpoint of an optimizer step lies."""
    return f"checkpoints/step-{step:09d}"


@dataclass(frozen=True)
class Save:
    """One gang's saving of one step; the same on all its ranks.

    Attributes:
        step: The optimizer step that the state belongs to.
        counters: Numbers that training counts besides its steps, such as ``updates``, the changes of the weights.
        world: The number of ranks.
        training: Identity of what is trained.
        shapes: Every parameter's shape.
        attempt: A token of this attempt, so that a part of an earlier one is not mistaken for its own.
    """

    step: int
    counters: Mapping[str, float]
    world: int
    training: str
    shapes: Mapping[str, Sequence[int]]
    attempt: str


def write_part(run: Storage, save: Save, rank: int, pieces: Sequence[Piece]) -> None:
    """Write one rank's part, and then the record that the part is whole."""
    from safetensors.numpy import save as pack

    data = pack({f"{kind}/{piece.name}": array for piece in pieces for kind, array in piece.arrays.items()})
    part = {
        "attempt": save.attempt,
        "file": f"rank-{rank:05d}.safetensors",
        "sha256": sha256(data),
        "bytes": len(data),
        "pieces": {piece.name: [piece.start, len(piece.arrays["master"])] for piece in pieces},
    }
    run.write(f"{folder(save.step)}/{part['file']}", data)
    run.write_json(f"{folder(save.step)}/rank-{rank:05d}.json", part)


def commit(run: Storage, save: Save) -> bool:
    """Write the manifest and the commit marker once every rank of this gang has written its part.

    Returns:
        Whether all parts were there and the checkpoint is committed now.
    """
    parts = []
    for rank in range(save.world):
        try:
            part = run.read_json(f"{folder(save.step)}/rank-{rank:05d}.json")
        except NotFound:
            return False
        if part.pop("attempt") != save.attempt:
            return False
        parts.append(part)
    manifest = {
        "format": FORMAT,
        "step": save.step,
        "counters": dict(save.counters),
        "training": save.training,
        "shapes": {name: list(shape) for name, shape in save.shapes.items()},
        "parts": parts,
    }
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    run.write(f"{folder(save.step)}/manifest.json", data)
    run.write(f"{folder(save.step)}/COMMIT", sha256(data).encode())
    return True


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint that can be read in ranges.

    Attributes:
        run: The run's folder.
        step: The optimizer step that it was saved after.
        counters: Numbers that training had counted besides its steps.
        training: Identity of the training that it belongs to.
        shapes: Every parameter's shape.
        parts: Each rank's part: file, digest, size, and which pieces it holds.
    """

    run: Storage
    step: int
    counters: Mapping[str, float]
    training: str
    shapes: Mapping[str, tuple[int, ...]]
    parts: Sequence[Mapping[str, Any]]
    _headers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The digest of the parts, equal for byte-equal states saved at the same world size."""
        return sha256("".join(str(part["sha256"]) for part in self.parts).encode())

    def verify(self, parts: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Compare the bytes of some parts, or of all, with their digests.

        Raises:
            DataError: If a part is missing, too short, or not the one that was committed.
        """
        for part in self.parts if parts is None else parts:
            key = f"{folder(self.step)}/{part['file']}"
            try:
                actual = sha256(self.run.read(key))
            except NotFound:
                raise DataError(f"{key} is missing") from None
            if actual != part["sha256"]:
                raise DataError(f"{key} has SHA-256 {actual[:12]}…, {part['sha256'][:12]}… was committed")

    def read(self, kind: StateKind, name: str, start: int = 0, length: int | None = None) -> NDArray[np.float32]:
        """Return elements ``start … start+length`` of a flattened parameter, or all of it from ``start``."""
        size = prod(self.shapes[name])
        end = size if length is None else start + length
        result = np.empty(end - start, dtype=np.float32)
        filled = 0
        for part in self.parts:
            if name not in part["pieces"]:
                continue
            first, count = part["pieces"][name]
            low, high = max(start, first), min(end, first + count)
            if low < high:
                result[low - start : high - start] = self._read_range(part["file"], kind, name, low - first, high - low)
                filled += high - low
        if filled != end - start:
            raise DataError(f"{folder(self.step)} holds {filled} of {end - start} elements of {kind} {name}")
        return result

    def read_all(self, kind: StateKind) -> dict[str, NDArray[np.float32]]:
        """Return every parameter in its shape."""
        return {name: self.read(kind, name).reshape(shape) for name, shape in self.shapes.items()}

    def _read_range(self, file: str, kind: StateKind, name: str, start: int, length: int) -> NDArray[np.float32]:
        data_at, tensors = self._header(file)
        begin = data_at + tensors[f"{kind}/{name}"]["data_offsets"][0] + 4 * start
        return np.frombuffer(self.run.read(f"{folder(self.step)}/{file}", begin, 4 * length), dtype="<f4")

    def _header(self, file: str) -> tuple[int, dict[str, Any]]:
        # The safetensors format: a little-endian 64-bit length, a JSON header of that length, then the data.
        if file not in self._headers:
            key = f"{folder(self.step)}/{file}"
            length = int.from_bytes(self.run.read(key, 0, 8), "little")
            self._headers[file] = (8 + length, json.loads(self.run.read(key, 8, length)))
        return self._headers[file]


def open_checkpoint(run: Storage, step: int) -> Checkpoint:
    """Open the checkpoint of a step.

    Raises:
        DataError: If it is not committed, or its manifest is not the one that was committed.
    """
    try:
        data = run.read(f"{folder(step)}/manifest.json")
        committed = run.read(f"{folder(step)}/COMMIT").decode(errors="replace")
    except NotFound as error:
        raise DataError(f"{folder(step)} was never committed ({error})") from None
    if sha256(data) != committed:
        raise DataError(f"{folder(step)}/manifest.json is not the one that was committed")
    manifest = json.loads(data)
    if manifest["format"] != FORMAT:
        raise DataError(f"{folder(step)} has format {manifest['format']}, this version reads {FORMAT}")
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return Checkpoint(run, step, manifest["counters"], manifest["training"], shapes, manifest["parts"])


def steps(run: Storage) -> list[int]:
    """Return the steps of all checkpoint folders, whole or not, newest first."""
    numbers = set()
    for entry in run.list("checkpoints/"):
        name = entry.key.split("/")[1]
        if name.startswith("step-") and name[5:].isdigit():
            numbers.add(int(name[5:]))
    return sorted(numbers, reverse=True)


def candidates(run: Storage, training: str | None = None) -> Iterator[Checkpoint | DataError]:
    """Yield the checkpoints of a run, newest first; for one that cannot be used, the error that says why.

    Args:
        run: The run's folder.
        training: Only checkpoints of the training with this identity count as usable, unless ``None``.
    """
    for step in steps(run):
        try:
            checkpoint = open_checkpoint(run, step)
        except DataError as error:
            yield error
            continue
        if training is None or checkpoint.training == training:
            yield checkpoint
        else:
            yield DataError(
                f"{folder(step)} belongs to another training (other settings, data, base model or version of Darkroom)"
            )


def newest(run: Storage, training: str | None = None) -> Checkpoint | None:
    """Return the newest committed checkpoint, its parts not verified yet; ``None`` if there is none."""
    return next((one for one in candidates(run, training) if isinstance(one, Checkpoint)), None)


def prune(run: Storage, keep: int, every: int | None, newest_step: int) -> None:
    """Delete checkpoints up to ``newest_step`` except the newest ``keep`` and those of steps divisible by ``every``.

    Those that were never committed go, too, and are none of the ``keep``: nobody could fall back to them. The marker
    goes first, so that a half deleted checkpoint is not taken for a whole one.
    """
    found = [step for step in steps(run) if step <= newest_step]
    committed = [step for step in found if run.exists(f"{folder(step)}/COMMIT")]
    kept = {*committed[:keep], *(step for step in committed if every is not None and step % every == 0)}
    for step in found:
        if step not in kept:
            run.delete(f"{folder(step)}/COMMIT")
            run.delete_tree(folder(step))


def discard_after(run: Storage, step: int) -> None:
    """Delete every checkpoint beyond a step: torn ones, and those of a training that this one replaces."""
    for later in [number for number in steps(run) if number > step]:
        run.delete(f"{folder(later)}/COMMIT")
        run.delete_tree(folder(later))
