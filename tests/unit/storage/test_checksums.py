"""Every change of a byte in a file with a checksum is found, or changes nothing that is read."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import pytest

from components.errors import DamagedFile, NotFound
from components.storage.base import Storage
from components.storage.checksums import growing_lines, with_checksum, without_checksum
from components.storage.open import open_storage

VALUE = {"seconds": 1.5, "name": "a é \udc80", "list": [None, {"deep": True}], "tuple": (1, 2), "by": {10: "x", 2: "y"}}
AS_READ = {**VALUE, "tuple": [1, 2], "by": {"10": "x", "2": "y"}}
RECORDS = [{"name": f"{number}.png", "bytes": number} for number in range(5)]


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(f"memory://checksums-{request.node.name}")


class Word(StrEnum):
    ONE = "one"


def test_an_object_comes_back_without_its_checksum_in_the_same_bytes_each_time(storage: Storage) -> None:
    storage.write_json("one.json", VALUE)
    assert storage.read_json("one.json") == AS_READ
    first = storage.read("one.json")
    storage.write_json("one.json", storage.read_json("one.json"))
    assert storage.read("one.json") == first
    assert json.loads(first)["checksum"].startswith("sha256:")


@pytest.mark.parametrize("value", [{}, {"a": Word.ONE}, {"a": 1e300, "b": -0.0, "c": 2**80}, {"checksum": "no"}])
def test_any_object_has_a_checksum_that_holds(value: dict[str, Any]) -> None:
    sealed = json.loads(json.dumps(with_checksum(value)))
    assert without_checksum(sealed) == {name: item for name, item in value.items() if name != "checksum"}


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def test_no_flipped_bit_of_an_object_changes_what_is_read(storage: Storage) -> None:
    """Unless the bit is in the name of the checksum: then that is one more field, and the others are as they were."""
    storage.write_json("one.json", VALUE)
    whole = storage.read("one.json")
    caught = 0
    for position in range(len(whole)):
        for bit in range(8):
            storage.write("one.json", flipped(whole, position, bit))
            try:
                read = storage.read_json("one.json")
            except DamagedFile:
                caught += 1
            else:
                assert {name: item for name, item in read.items() if name in AS_READ} == AS_READ
    assert caught > 0.8 * 8 * len(whole), "the others are white space, and the name of the checksum"


def test_records_come_back_without_their_last_line(storage: Storage) -> None:
    for records in (RECORDS, []):
        storage.write_records("records.jsonl", iter(records))
        assert list(storage.read_records("records.jsonl")) == records
        assert storage.read("records.jsonl").count(b"\n") == len(records) + 1
    with pytest.raises(NotFound):
        storage.read_records("none.jsonl")


def test_no_flipped_bit_of_records_is_read(storage: Storage) -> None:
    storage.write_records("records.jsonl", RECORDS)
    whole = storage.read("records.jsonl")
    for position in range(len(whole)):
        storage.write("records.jsonl", flipped(whole, position, position % 8))
        with pytest.raises(DamagedFile, match=r"'records\.jsonl'.*damaged.*delete it"):
            storage.read_records("records.jsonl")
    storage.write("records.jsonl", flipped(whole, 0, 0))
    with pytest.raises(DamagedFile, match="its lines do not give its checksum"):
        storage.read_records("records.jsonl")


def test_records_that_were_cut_off_anywhere_are_not_read(storage: Storage) -> None:
    storage.write_records("records.jsonl", RECORDS)
    whole = storage.read("records.jsonl")
    for length in range(len(whole)):
        storage.write("records.jsonl", whole[:length])
        with pytest.raises(DamagedFile, match="checksum"):
            storage.read_records("records.jsonl")
    storage.write("records.jsonl", whole[: whole.rfind(b"\n", 0, -1) + 1])
    with pytest.raises(DamagedFile, match="does not end in a checksum, so it was cut off"):
        storage.read_records("records.jsonl")
    storage.append_lines("records.jsonl", [{"more": 1}])
    with pytest.raises(DamagedFile):
        storage.read_records("records.jsonl")


def test_an_object_that_someone_changed_can_be_used_without_its_checksum(storage: Storage) -> None:
    storage.write_json("one.json", {"steps": 1})
    storage.write("one.json", storage.read("one.json").replace(b'"steps": 1', b'"steps": 2'))
    with pytest.raises(DamagedFile, match=r"one\.json.*delete it.*only its checksum if you changed it yourself"):
        storage.read_json("one.json")
    storage.write("one.json", b'{"steps": 2}')
    assert storage.read_json("one.json") == {"steps": 2}


def test_an_object_without_a_checksum_is_of_an_earlier_version() -> None:
    with pytest.raises(ValueError, match="no checksum, as in earlier versions"):
        without_checksum({"a": 1})


GROWING = [json.dumps(with_checksum({"number": number})).encode() + b"\n" for number in range(3)]


def test_growing_lines_come_back_with_their_numbers_also_if_the_last_was_cut_off_anywhere() -> None:
    assert list(growing_lines(b"")) == []
    *lines, last = GROWING
    whole = [(1, {"number": 0}), (2, {"number": 1})]
    for length in range(len(last)):
        assert list(growing_lines(b"".join([*lines, last[:length]]))) == whole
    assert list(growing_lines(b"".join(GROWING))) == [*whole, (3, {"number": 2})]


def test_growing_lines_that_are_not_what_was_written_are_named_by_their_number() -> None:
    for number in range(3):
        damaged = [flipped(line, 12, 0) if here == number else line for here, line in enumerate(GROWING)]
        with pytest.raises(ValueError, match=rf"^line {number + 1}: "):
            list(growing_lines(b"".join(damaged)))
    with pytest.raises(ValueError, match=r"^line 4: it does not end as it was written"):
        list(growing_lines(b"".join(GROWING) + b"{} and more"))


def test_what_is_damaged_is_said_by_the_kind_of_file(storage: Storage) -> None:
    storage.write("list.json", b"[1]")
    with pytest.raises(DamagedFile, match=r"list\.json.*no checksum"):
        storage.read_json("list.json", must_have_checksum=True)
    with pytest.raises(DamagedFile, match=r"list\.json.*it is no JSON object; delete it"):
        storage.read_object("list.json")
    with pytest.raises(DamagedFile, match=r"list\.json.*delete it so that it is written again"):
        storage.read_object("list.json", "a")
    storage.write_json("one.json", {"a": 1, "b": 2})
    assert storage.read_object("one.json", "a", "b") == {"a": 1, "b": 2}
    with pytest.raises(DamagedFile, match=r"one\.json.*it has no c, d; delete it"):
        storage.read_object("one.json", "c", "a", "d")


def test_numbers_that_json_does_not_have_are_not_written(storage: Storage) -> None:
    for value in ([float("nan")], {"a": float("inf")}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            storage.write_json("one.json", value)
    assert not storage.exists("one.json")
