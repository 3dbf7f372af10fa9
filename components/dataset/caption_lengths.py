"""How many captions of a caption set a model's text encoders cut off: counted once, shown wherever captions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from components.errors import DataError, NotFound
from components.storage.base import Storage

FORMAT = 2  # 1 counted the tokens for beginning and end
KEY = "captions.json"


@dataclass(frozen=True)
class CaptionLengths:
    """Captions of accepted images, by whether the text encoders read all of them.

    Attributes:
        made_from: Digest of the captions, the tokenizers and the settings.
        captions: How many captions there are.
        tokens: How many tokens of a caption the text encoders read, in all chunks.
        cut: How many captions are longer, by their group.
    """

    made_from: str
    captions: int
    tokens: int
    cut: Mapping[str, int]

    @property
    def total(self) -> dict[str, int]:
        """Return the counts over all groups: ``captions``, ``cut`` and ``tokens``."""
        return {"captions": self.captions, "cut": sum(self.cut.values()), "tokens": self.tokens}


def write_caption_lengths(records: Storage, lengths: CaptionLengths) -> None:
    """Write the counts beside a caption set's other records; see `components.dataset.versions.records_of`."""
    records.write_json(KEY, {"format": FORMAT, **asdict(lengths)})


def read_caption_lengths(records: Storage) -> CaptionLengths | None:
    """Read the counts; None if they were not counted, or cannot be read: then they are counted again."""
    try:
        values = dict(records.read_json(KEY))
        if values.pop("format") != FORMAT:
            return None
        cut = {str(group): int(count) for group, count in values.pop("cut").items()}
        return CaptionLengths(str(values["made_from"]), int(values["captions"]), int(values["tokens"]), cut)
    except (NotFound, DataError, AttributeError, KeyError, TypeError, ValueError):
        return None
