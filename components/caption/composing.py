"""From words to captions: tags are shuffled and dropped, prefix, trigger and suffix put around, and all is recorded.

What becomes of an image's tags depends on the image's digest alone, so it is the same everywhere and in every run. The
first ``keep`` tags, such as a character's name, stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from components.caption.config import CaptionConfig, TagsConfig
from components.image.records import Caption
from components.rng import hash_key

# Authors of sentences, even if the captions beside the images are tags.
_SENTENCES = ("model:", "fixed", "none")

# What a random number is drawn for; captions depend on these values.
_ORDER, _DROPOUT = 1, 2


def compose(words: Iterable[Caption], sha256: str, config: CaptionConfig) -> tuple[Caption, ...]:
    """Return an image's captions, no two with the same text.

    What was done to the words is noted behind the author: ``+shuffled``, ``+dropout``, ``+prefix``, ``+trigger``,
    ``+suffix``.

    Args:
        words: The captions as they were written, with their authors; at least one.
        sha256: Digest of the image, as hex digits.
        config: What is done to them.
    """
    captions: dict[str, Caption] = {}
    for word in words:
        tagged = config.tags.separator is not None and not word.by.startswith(_SENTENCES)
        by = word.by + _changes(config, tagged)
        for text in variants(word.text, sha256, config.tags) if tagged else [word.text]:
            full = _with_affixes(text, config, tagged)
            captions.setdefault(full, Caption(full, by))
    return tuple(captions.values())


def label(template: str, words: str) -> str:
    """Return a label in its template, which has ``{label}`` in it and no other field."""
    return template.format(label=words)


def split(caption: str, separator: str) -> list[str]:
    """Return the tags of a caption, without the white space around them and without empty ones."""
    # ", " separates "a,b", too: white space counts only in a separator that is nothing else.
    parts = caption.split(separator.strip() or None)
    return [tag for part in parts if (tag := part.strip())]


def variants(caption: str, sha256: str, config: TagsConfig) -> list[str]:
    """Return the captions made of one list of tags: at least one, no two the same.

    Args:
        caption: Tags with ``config.separator`` between them.
        sha256: Digest of the image, as hex digits.
        config: How many captions, and how many tags are dropped.
    """
    if config.separator is None:
        return [caption]
    tags = split(caption, config.separator)
    lists = [_variant(tags, sha256, number, config) for number in range(max(config.shuffled, 1))]
    return list(dict.fromkeys(config.separator.join(chosen) for chosen in lists if chosen)) or [caption]


def _with_affixes(text: str, config: CaptionConfig, tagged: bool) -> str:
    between = config.tags.separator if tagged and config.tags.separator else " "
    core = between.join(part for part in (config.trigger, text) if part)
    return f"{config.prefix}{core}{config.suffix}".strip()


def _changes(config: CaptionConfig, tagged: bool) -> str:
    changes = {
        "shuffled": tagged and config.tags.shuffled,
        "dropout": tagged and config.tags.dropout,
        "prefix": config.prefix,
        "trigger": config.trigger,
        "suffix": config.suffix,
    }
    return "".join(f"+{name}" for name, value in changes.items() if value)


def _variant(tags: list[str], sha256: str, number: int, config: TagsConfig) -> list[str]:
    """Return one choice of tags, in an order of its own if they are shuffled."""
    image = int(sha256[:16], 16)
    indices = range(config.keep, len(tags))
    kept = [index for index in indices if hash_key(image, number, _DROPOUT, index) >= config.dropout * 2.0**64]
    if config.shuffled:
        kept.sort(key=lambda index: hash_key(image, number, _ORDER, index))
    return tags[: config.keep] + [tags[index] for index in kept]
