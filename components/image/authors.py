"""Count who wrote the captions that a model is trained on, for the report and the model card.

``Caption.by`` names the author of each caption, then the changes to the text. Captions of one kind are counted
together: all caption files are ``sidecar``, all captions from metadata are ``metadata``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from components.image.records import CaptionRecord

# How the caption step marks its changes to the text.
_CHANGES = re.compile(r"(?:\+(?:shuffled|dropout|prefix|trigger|suffix))*\Z")
# After these comes the name of a single image.
_BY_IMAGE = ("sidecar", "metadata")
# A model named by its path or URL, not by a name of the hub: these are private, so only the last part is published.
_MODEL_PATH = re.compile(r"model:(?:workdir:|\w+://|[/.~]).*/")


def author(by: str) -> str:
    """Return who wrote a caption, without the image's name: ``sidecar:a.txt+trigger`` is ``sidecar+trigger``."""
    changes = _CHANGES.search(by)
    assert changes is not None  # it matches the empty string, too
    who = by[: changes.start()]
    kind = who.partition(":")[0]
    return (kind if kind in _BY_IMAGE else _MODEL_PATH.sub("model:", who)) + changes[0]


def count_authors(records: Iterable[CaptionRecord]) -> dict[str, int]:
    """Return how many captions each author wrote, most captions first."""
    counts = Counter(author(caption.by) for record in records for caption in record.captions)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
