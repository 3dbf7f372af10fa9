"""How a model reads texts is recorded if it is unusual, and a record that nobody can have written is no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.errors import DamagedFile
from components.model.manifest import MANIFEST, commit_model
from components.model.text_reading import (
    AT_ONCE,
    TextReading,
    chunks_of_base,
    reading_of_encoding,
    reading_of_model,
    reading_of_record,
    text_chunks,
)
from components.storage.local import LocalStorage
from tests.stores.memory import MemoryStorage


@pytest.mark.parametrize("reading", [AT_ONCE, TextReading(2), TextReading(8, 11), TextReading(clip_skip=1)])
def test_a_model_says_how_it_reads(reading: TextReading, tmp_path: Path) -> None:
    commit_model(LocalStorage(tmp_path), {}, 3, reading.record)
    assert reading_of_model(tmp_path) == reading
    assert ("text" in json.loads((tmp_path / MANIFEST).read_bytes())) == (reading != AT_ONCE)
    assert text_chunks(None, tmp_path) == reading.chunks
    assert text_chunks(3, tmp_path) == 3


def test_chunks_of_a_base_are_known_without_fetching_it(tmp_path: Path) -> None:
    workdir = MemoryStorage(tmp_path.name)
    commit_model(workdir.child("models/cats/1"), {}, 3, TextReading(2).record)
    commit_model(LocalStorage(tmp_path), {}, 3, TextReading(3).record)
    assert chunks_of_base(None, "workdir:models/cats/1", workdir) == 2
    assert chunks_of_base(1, "workdir:models/cats/1", workdir) == 1
    assert chunks_of_base(None, "workdir:models/cats/2", workdir) == 1
    assert chunks_of_base(None, f"{workdir.url}/models/cats/1", workdir) == 2
    assert chunks_of_base(None, str(tmp_path), workdir) == 3
    assert chunks_of_base(None, "owner/name@main", workdir) == 1


@pytest.mark.parametrize("manifest", [None, b"{", b"[]", b"{}", b'{"text": "a foreign one"}', b'{"sha256": {}}'])
def test_any_other_model_reads_at_once(manifest: bytes | None, tmp_path: Path) -> None:
    if manifest is not None:
        (tmp_path / MANIFEST).write_bytes(manifest)
    assert reading_of_model(tmp_path) == AT_ONCE


@pytest.mark.parametrize("text", [2, {"chunks": 0}, {"chunks": 9}, {"chunks": "2"}, {"chunks": True}, {"pieces": 2}])
def test_a_record_that_is_none_is_named(text: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"sha256": {}, "text": text}))
    with pytest.raises(DamagedFile, match=r"manifest\.json of model .* is damaged \(text is "):
        reading_of_model(tmp_path)
    with pytest.raises(ValueError, match="text is"):
        reading_of_record({"text": text})


def test_encodings_of_before_there_were_chunks_are_of_one() -> None:
    assert reading_of_encoding({}) == AT_ONCE
    assert reading_of_encoding({"clip_skip": 2, "text_chunks": 3}) == TextReading(3, 2)
