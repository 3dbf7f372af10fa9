"""Who wrote the captions that a model is trained on, counted: for the report and for the model card.

``Caption.by`` says it of each caption: who it was, then what was done to the words. Counted together are captions of
one kind: all caption files are ``sidecar``, all captions that came with metadata are ``metadata``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from components.errors import NotFound
from components.image.records import CaptionRecord
from components.storage.base import Storage

KEY = "authors.json"

# What the caption step notes of what it did to the words.
_CHANGES = re.compile(r"(?:\+(?:shuffled|dropout|prefix|trigger|suffix))*\Z")
# The names behind these are of single images.
_BY_IMAGE = ("sidecar", "metadata")
# A model named by its place, not by a name of the hub: where somebody keeps things is nobody's business.
_PLACE = re.compile(r"model:(?:workdir:|\w+://|[/.~]).*/")


def author(by: str) -> str:
    """Return who wrote a caption, without what is of one image: ``sidecar:a.txt+trigger`` is ``sidecar+trigger``."""
    changes = _CHANGES.search(by)
    assert changes is not None  # it matches nothing at all, too
    who = by[: changes.start()]
    kind = who.partition(":")[0]
    return (kind if kind in _BY_IMAGE else _PLACE.sub("model:", who)) + changes[0]


def count_authors(records: Iterable[CaptionRecord]) -> dict[str, int]:
    """Return how many captions each author wrote, the busiest first."""
    counts = Counter(author(caption.by) for record in records for caption in record.captions)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_authors(dataset: Storage, counts: dict[str, int]) -> None:
    """Write down who wrote a dataset's captions; ``dataset`` is the storage at ``datasets/<encoding-key>``."""
    # As a list, since JSON objects have no order.
    dataset.write_json(KEY, [[who, count] for who, count in counts.items()])


def read_authors(dataset: Storage) -> dict[str, int]:
    """Read who wrote a dataset's captions, the busiest first; nobody where it was not written down."""
    try:
        return {str(who): int(count) for who, count in dataset.read_json(KEY)}
    except NotFound:
        return {}
