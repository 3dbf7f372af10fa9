"""Files of rows that tests write, good ones and what people have for them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.images import image_bytes

ROWS = 3


def images(rows: int = ROWS, first: int = 0) -> list[bytes]:
    return [image_bytes(first + row) for row in range(rows)]


def table(metadata: Mapping[str, Any] | None = None, **columns: Any) -> pa.Table:
    """A table with three images in a column of structs, as `datasets` writes them, and other columns."""
    made = {"image": [{"bytes": data, "path": None} for data in images()], "text": ["a", "b", "c"], **columns}
    result = pa.table({name: values for name, values in made.items() if values is not None})
    if metadata is not None:
        result = result.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": metadata}}).encode()})
    return result


def parquet(rows: pa.Table | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table() if rows is None else rows, file, **options)
    return file.getvalue()


def arrow(rows: pa.Table | None = None, batch: int = 1, make: Callable[..., Any] = pa.ipc.new_stream) -> bytes:
    file = io.BytesIO()
    rows = table() if rows is None else rows
    with make(file, rows.schema) as writer:
        writer.write_table(rows, batch)
    return file.getvalue()


def claiming(rows: int) -> bytes:
    """A Parquet file of three rows whose metadata claim more of them."""
    data = parquet()
    length = int.from_bytes(data[-8:-4], "little")
    number, claim = 2 * rows, b""
    while number:
        claim += bytes([number & 127 | (128 if number > 127 else 0)])
        number >>= 7
    # Thrift's compact protocol: the next field, of type i64, and 3 in zigzag.
    footer = data[-8 - length : -8].replace(b"\x16\x06", b"\x16" + claim)
    assert len(footer) > length
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def damaged(data: bytes, share: float) -> bytes:
    """A file of which some bytes are others."""
    at = int(len(data) * share)
    return data[:at] + bytes(255 - byte for byte in data[at : at + 64]) + data[at + 64 :]


def text_of_bytes(values: list[bytes]) -> pa.Array:
    """A column of text whose bytes are any."""
    plain = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(plain), plain.buffers())


class Trap:
    """Writes a file when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self._path, "opened"))


def with_pickle(path: Path) -> bytes:
    """A table whose image column is of an extension type with a pickle, as old pyarrows opened it."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata[b"ARROW:extension:metadata"] = pickle.dumps(Trap(path))
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata)])
    return arrow(pa.Table.from_arrays([pa.array(images(), pa.binary())], schema=schema))


def pixels(first: int = 0) -> NDArray[np.uint8]:
    """Three images, as HDF5 files have them: ``[3, 24, 20, 3]``."""
    return np.random.default_rng(first).integers(0, 256, (ROWS, 24, 20, 3), np.uint8)


def hdf5(change: Callable[[Any], object] = lambda file: None, **sets: Any) -> bytes:
    """An HDF5 file as Fashion-Gen is, with other data sets instead or besides; None leaves one out."""
    data = io.BytesIO()
    made = {"input_image": pixels(), "input_description": np.array([[b"a caf\xe9"], [b"b"], [b"c"]]), **sets}
    with h5py.File(data, "w") as file:
        for name, values in made.items():
            if values is not None:
                file[name] = values
        change(file)
    return data.getvalue()


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((ROWS, 24, 20, 3), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (ROWS, 24, 20, 3))
    file.create_virtual_dataset("input_image", layout)


def _outside(file: Any) -> None:
    file.create_dataset("input_image", (ROWS, 24, 20, 3), np.uint8, external=[("/etc/passwd", 0, 4320)])


def _linked(link: Any) -> Callable[[], bytes]:
    def change(file: Any) -> None:
        file["input_image"] = link

    return lambda: hdf5(change, input_image=None)


def _claimed(rows: int, **options: Any) -> Callable[[], bytes]:
    return lambda: hdf5(
        lambda file: file.create_dataset("input_image", (rows, 24, 20, 3), np.uint8, **options), input_image=None
    )


def _encoded_files() -> bytes:
    return hdf5(lambda file: _files(file), input_image=None)


def _files(file: Any) -> None:
    made = file.create_dataset("image", (ROWS,), h5py.vlen_dtype(np.uint8))
    for row, data in enumerate(images()):
        made[row] = np.frombuffer(data, np.uint8)


class RowFile(NamedTuple):
    """One kind of file.

    Attributes:
        ending: What its name ends in.
        data: Returns its bytes.
        kept: Captions of the images that are kept, in the order of the rows; empty for none.
        rejected: Reasons, by the row's number, or ``file``.
    """

    ending: str
    data: Callable[[], bytes]
    kept: tuple[str, ...]
    rejected: Mapping[Any, str] = {}


def _structs(*values: Any) -> pa.Array:
    return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _one(value: Any) -> Callable[[], bytes]:
    good = images()
    return lambda: parquet(table(image=_structs({"bytes": good[0]}, value, {"bytes": good[2]})))


ALL, ENDS, _FASHION = ("a", "b", "c"), ("a", "c"), ("a caf\xe9", "b", "c")
_BROKEN, _COLUMNS = {"file": "table-broken"}, {"file": "table-columns"}
_MIXED = [{"bytes": b"", "path": None}, {"bytes": None, "path": None}, None]

ROW_FILES: Mapping[str, RowFile] = {
    "parquet": RowFile("parquet", parquet, ALL),
    "upper case": RowFile("PARQUET", parquet, ALL),
    "row groups": RowFile("parquet", lambda: parquet(row_group_size=1), ALL),
    "gzip": RowFile("parquet", lambda: parquet(compression="gzip"), ALL),
    "zstd": RowFile("parquet", lambda: parquet(compression="zstd", version="2.6"), ALL),
    "a stream": RowFile("arrow", arrow, ALL),
    "an arrow file": RowFile("arrow", lambda: arrow(make=pa.ipc.new_file), ALL),
    "plain bytes": RowFile("parquet", lambda: parquet(table(image=images())), ALL),
    "large bytes": RowFile("arrow", lambda: arrow(table(image=pa.array(images(), pa.large_binary()))), ALL),
    "a view of bytes": RowFile("arrow", lambda: arrow(table(image=pa.array(images(), pa.binary_view()))), ALL),
    "a dictionary": RowFile("arrow", lambda: arrow(table(text=pa.array(ALL).dictionary_encode())), ALL),
    "another name": RowFile("parquet", lambda: parquet(table(image=None, photo=images())), ALL),
    "jpg of several": RowFile("parquet", lambda: parquet(table(image=None, jpg=images(), thumb=images(3, 9))), ALL),
    "the only text": RowFile("parquet", lambda: parquet(table(text=None, en_words=["a", "b", "c"])), ALL),
    "lists of text": RowFile("parquet", lambda: parquet(table(text=[["a", "x"], ["b"], ["c"]])), ALL),
    "garbage besides": RowFile("parquet", lambda: parquet(table(deep=[[[[{"a": [1]}]]]] * 3, day=[None] * 3)), ALL),
    "a schema of words": RowFile(
        "parquet", lambda: parquet(table().replace_schema_metadata({b"huggingface": b"[" * 10**5})), ALL
    ),
    "features of garbage": RowFile("parquet", lambda: parquet(table({"image": 7, "text": [], "gone": {}})), ALL),
    "not a number": RowFile("parquet", lambda: parquet(table(score=[float("nan"), float("inf"), 1.0])), ALL),
    "a row of nothing": RowFile("parquet", _one(None), ENDS, {1: "row-without-image"}),
    "an empty image": RowFile("parquet", _one({"bytes": b""}), ENDS, {1: "row-without-image"}),
    "nothing inside": RowFile("parquet", _one({"bytes": None, "path": ""}), ENDS, {1: "row-without-image"}),
    "words for an image": RowFile("parquet", _one({"bytes": b"words"}), ENDS, {"image 1": "not-an-image"}),
    "half an image": RowFile("parquet", _one({"bytes": image_bytes(1)[:40]}), ENDS, {"image 1": "truncated"}),
    "a path outside": RowFile("parquet", _one({"path": "../a.png"}), ENDS, {1: "row-path"}),
    "an absolute path": RowFile("parquet", _one({"path": "/etc/passwd"}), ENDS, {1: "row-path"}),
    "an address": RowFile("parquet", _one({"path": "https://example.org/a.png"}), ENDS, {1: "row-path"}),
    "a missing file": RowFile("parquet", _one({"path": "gone.png"}), ENDS, {1: "unreadable"}),
    "a large image": RowFile("parquet", _one({"bytes": bytes(2 << 20)}), ENDS, {1: "too-large"}),
    "a bomb": RowFile(
        "parquet",
        lambda: parquet(table(image=_structs(*({"bytes": bytes(4 << 20)} for _ in range(3)))), compression="zstd"),
        (),
        dict.fromkeys(range(3), "too-large"),
    ),
    "only nothing": RowFile(
        "parquet", lambda: parquet(table(image=_structs(*_MIXED))), (), dict.fromkeys(range(3), "row-without-image")
    ),
    "latin-1": RowFile(
        "parquet",
        lambda: parquet(table(text=text_of_bytes([b"a", b"caf\xe9", b"c"]))),
        ("a", "-", "c"),
        {1: "metadata-broken"},
    ),
    "no caption": RowFile("parquet", lambda: parquet(table(text=["a", None, "c"])), ("a", "-", "c")),
    "no rows": RowFile("parquet", lambda: parquet(table().slice(0, 0)), ()),
    "nothing": RowFile("parquet", lambda: b"", (), _BROKEN),
    "words": RowFile("parquet", lambda: b"words" * 100, (), _BROKEN),
    "a magic alone": RowFile("parquet", lambda: b"PAR1PAR1", (), _BROKEN),
    "half a file": RowFile("parquet", lambda: parquet()[:1000], (), _BROKEN),
    "arrow called parquet": RowFile("parquet", arrow, (), _BROKEN),
    "parquet called arrow": RowFile("arrow", parquet, (), _BROKEN),
    "many rows claimed": RowFile("parquet", lambda: claiming(2**31), ALL, _BROKEN),
    "an endless footer": RowFile("parquet", lambda: parquet()[:-8] + b"\xff\xff\xff\x7fPAR1", (), _BROKEN),
    "a damaged footer": RowFile("parquet", lambda: damaged(parquet(), 0.97), (), _BROKEN),
    "a damaged page": RowFile("parquet", lambda: damaged(parquet(compression="none"), 0), (), _BROKEN),
    "a stream cut": RowFile("arrow", lambda: arrow()[: len(arrow()) * 3 // 4], ("a", "b"), _BROKEN),
    "a stream of nothing": RowFile("arrow", lambda: b"", (), _BROKEN),
    "an endless message": RowFile("arrow", lambda: b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 99, (), _BROKEN),
    "an arrow file cut": RowFile("arrow", lambda: arrow(make=pa.ipc.new_file)[:-20], (), _BROKEN),
    "a column twice": RowFile(
        "arrow", lambda: arrow(pa.Table.from_arrays([pa.array(images())] * 2, ["image", "image"])), (), _BROKEN
    ),
    "numbers alone": RowFile("parquet", lambda: parquet(pa.table({"x": [1]})), (), _COLUMNS),
    "no columns": RowFile("parquet", lambda: parquet(pa.table({})), (), _COLUMNS),
    "addresses": RowFile("parquet", lambda: parquet(pa.table({"url": ["http://a/b"], "text": ["a"]})), (), _COLUMNS),
    "fashion-gen": RowFile("h5", hdf5, _FASHION),
    "image files": RowFile("hdf5", _encoded_files, _FASHION),
    "grays": RowFile("h5", lambda: hdf5(input_image=pixels()[..., 0]), _FASHION),
    "four channels": RowFile("h5", lambda: hdf5(input_image=np.repeat(pixels()[..., :1], 4, 3)), _FASHION),
    "gzip in hdf5": RowFile(
        "h5",
        lambda: hdf5(lambda file: file.create_dataset("image", data=pixels(), compression=9), input_image=None),
        _FASHION,
    ),
    "a short column": RowFile("h5", lambda: hdf5(input_description=np.array([[b"a"]])), (), _COLUMNS),
    "text of numbers": RowFile(
        "h5",
        lambda: hdf5(input_description=np.array([[1.5], [np.nan], [2]])),
        ("-", "-", "-"),
        {"image 0": "metadata-broken", "image 2": "metadata-broken"},
    ),
    "hdf5 of nothing": RowFile("h5", lambda: b"", (), _BROKEN),
    "hdf5 of words": RowFile("hdf5", lambda: b"words" * 100, (), _BROKEN),
    "half an hdf5": RowFile("h5", lambda: hdf5()[:3000], (), _BROKEN),
    "a damaged hdf5": RowFile("h5", lambda: damaged(hdf5(), 0.02), (), _BROKEN),
    "an empty hdf5": RowFile("h5", lambda: hdf5(input_image=None, input_description=None), (), _COLUMNS),
    "a soft link": RowFile("h5", _linked(h5py.SoftLink("/input_description")), (), _COLUMNS),
    "an external link": RowFile("h5", _linked(h5py.ExternalLink("/etc/passwd", "/x")), (), _COLUMNS),
    "a virtual set": RowFile("h5", lambda: hdf5(_virtual, input_image=None), (), _COLUMNS),
    "pixels elsewhere": RowFile("h5", lambda: hdf5(_outside, input_image=None), (), _COLUMNS),
    "floats": RowFile("h5", lambda: hdf5(input_image=pixels() / 255), (), _COLUMNS),
    "five channels": RowFile("h5", lambda: hdf5(input_image=np.zeros((3, 8, 8, 5), np.uint8)), (), _COLUMNS),
    "no pixels": RowFile("h5", lambda: hdf5(input_image=np.zeros((3, 0, 8, 3), np.uint8)), (), _COLUMNS),
    "hdf5 without rows": RowFile("h5", lambda: hdf5(input_image=pixels()[:0], input_description=None), ()),
    "rows never written": RowFile("h5", _claimed(2**31), (), _BROKEN),
    "chunks never written": RowFile("h5", _claimed(2**31, chunks=(1, 24, 20, 3), compression=9), (), _BROKEN),
    "endless chunks": RowFile("h5", _claimed(2**20, chunks=(2**18, 24, 20, 3)), (), _BROKEN),
    "two images": RowFile("parquet", lambda: parquet(table(image=None, a=images(), b=images())), (), _COLUMNS),
    "lists of images": RowFile("parquet", lambda: parquet(table(image=[images()] * 3)), (), _COLUMNS),
}
