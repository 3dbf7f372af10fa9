"""What a caption step has finished so far, so that after a kill no image is captioned twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict

from components.digests import short
from components.errors import DataError
from components.image.records import ImageOutcome, Rejection, parse_caption_record
from components.storage.base import Storage


def read_unfinished(captions: Storage, group: str) -> list[ImageOutcome]:
    """Return the outcomes that a killed step has saved of a group, in no order; what cannot be read is done again."""
    outcomes: list[ImageOutcome] = []
    for entry in captions.list(_folder(group)):
        with suppress(DataError, TypeError):
            outcomes += read_outcomes(captions, entry.key)
    return outcomes


def read_outcomes(storage: Storage, key: str) -> list[ImageOutcome]:
    """Return outcomes as `write_outcomes` wrote them.

    Raises:
        DataError: If the lines are no outcomes; also TypeError.
    """
    return [
        Rejection(**values) if "reason" in values else parse_caption_record(values, key)
        for values in storage.read_records(key)
    ]


def write_outcomes(storage: Storage, key: str, outcomes: Iterable[ImageOutcome]) -> None:
    """Write outcomes, one per line."""
    storage.write_records(key, (asdict(outcome) for outcome in outcomes))


def save_unfinished(captions: Storage, group: str, outcomes: Sequence[ImageOutcome]) -> None:
    """Save some of a group's outcomes beside those already saved."""
    write_outcomes(captions, f"{_folder(group)}/{short([asdict(outcome) for outcome in outcomes])}.jsonl", outcomes)


def clear_unfinished(captions: Storage, group: str) -> None:
    """Remove what was saved of a group, once it is finished."""
    captions.delete_tree(_folder(group))


def _folder(group: str) -> str:
    return f"{group}.unfinished"
