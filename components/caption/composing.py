"""From words to captions: tags shuffled, prefix, trigger and suffix put around them, and all of it written down."""

from __future__ import annotations

from collections.abc import Iterable

from components.caption import tags
from components.caption.config import CaptionConfig
from components.image.records import Caption

# Who writes sentences even where the captions beside the images are tags.
_SENTENCES = ("model:", "fixed", "none")


def compose(words: Iterable[Caption], sha256: str, config: CaptionConfig) -> tuple[Caption, ...]:
    """Return an image's captions, no two with the same text.

    Who wrote them is told what was done to the words: ``+shuffled``, ``+dropout``, ``+prefix``, ``+trigger``,
    ``+suffix``.

    Args:
        words: What was written, and by whom; at least one.
        sha256: Digest of the image, as hex digits.
        config: What is to be done.
    """
    captions: dict[str, Caption] = {}
    for word in words:
        tagged = config.tags.separator is not None and not word.by.startswith(_SENTENCES)
        by = word.by + _changes(config, tagged)
        for text in tags.variants(word.text, sha256, config.tags) if tagged else [word.text]:
            dressed = _dress(text, config, tagged)
            captions.setdefault(dressed, Caption(dressed, by))
    return tuple(captions.values())


def label(template: str, words: str) -> str:
    """Return a label in its template, which has ``{label}`` in it and no other field."""
    return template.format(label=words)


def _dress(text: str, config: CaptionConfig, tagged: bool) -> str:
    between = config.tags.separator if tagged and config.tags.separator else " "
    core = between.join(part for part in (config.trigger, text) if part)
    return f"{config.prefix}{core}{config.suffix}".strip()


def _changes(config: CaptionConfig, tagged: bool) -> str:
    done = {
        "shuffled": tagged and config.tags.shuffled,
        "dropout": tagged and config.tags.dropout,
        "prefix": config.prefix,
        "trigger": config.trigger,
        "suffix": config.suffix,
    }
    return "".join(f"+{name}" for name, value in done.items() if value)
