"""Captions that are lists of tags: the same tags in other orders, and some of them left out.

What becomes of an image's tags depends on its digest and on nothing else, so that it is the same on every machine and
in every run. The first ``keep`` tags, such as a character's name, stay where they are.
"""

from __future__ import annotations

from components.caption.config import TagsConfig
from components.rng import hash_key

# What a number is drawn for; the values are part of what a caption rests on.
_ORDER, _DROPOUT = 1, 2


def split(caption: str, separator: str) -> list[str]:
    """Return the tags of a caption, without the white space around them; what is empty is left out."""
    # ", " separates "a,b" too; only where white space is all that separates does it count.
    parts = caption.split(separator.strip() or None)
    return [tag for part in parts if (tag := part.strip())]


def variants(caption: str, sha256: str, config: TagsConfig) -> list[str]:
    """Return the captions that are made of one list of tags, at least one, and no two alike.

    Args:
        caption: Tags with ``config.separator`` between them.
        sha256: Digest of the image, as hex digits.
        config: How many there are to be, and what is left out.
    """
    if config.separator is None:
        return [caption]
    tags = split(caption, config.separator)
    made = [_variant(tags, sha256, number, config) for number in range(max(config.shuffled, 1))]
    return list(dict.fromkeys(config.separator.join(chosen) for chosen in made if chosen)) or [caption]


def _variant(tags: list[str], sha256: str, number: int, config: TagsConfig) -> list[str]:
    """Return one choice of tags, in an order of its own where they are shuffled."""
    image = int(sha256[:16], 16)
    places = range(config.keep, len(tags))
    kept = [place for place in places if hash_key(image, number, _DROPOUT, place) >= config.dropout * 2.0**64]
    if config.shuffled:
        kept.sort(key=lambda place: hash_key(image, number, _ORDER, place))
    return tags[: config.keep] + [tags[place] for place in kept]
