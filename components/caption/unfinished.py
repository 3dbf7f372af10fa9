"""What a caption step has done before it is finished, so that a killed one does not ask the captioner again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from components.digests import short
from components.errors import DataError
from components.manifest import Outcome, Rejection, parse_caption_record
from components.storage import Storage


def read_unfinished(dataset: Storage, group: str) -> list[Outcome]:
    """Return what a killed step has saved of a group, in no order; what cannot be read is done again."""
    outcomes: list[Outcome] = []
    for entry in dataset.list(_folder(group)):
        with suppress(DataError, TypeError):
            for values in dataset.read_lines(entry.key):
                outcomes.append(Rejection(**values) if "reason" in values else parse_caption_record(values, entry.key))
    return outcomes


def save_unfinished(dataset: Storage, group: str, outcomes: Sequence[Outcome]) -> None:
    """Save some of a group's outcomes beside those that are saved already."""
    lines = [asdict(outcome) for outcome in outcomes]
    dataset.write_lines(f"{_folder(group)}/{short(lines)}.jsonl", lines)


def clear_unfinished(dataset: Storage, group: str) -> None:
    """Remove what was saved of a group, once it is finished."""
    dataset.delete_tree(_folder(group))


def _folder(group: str) -> str:
    return f"captions/{group}.unfinished"
