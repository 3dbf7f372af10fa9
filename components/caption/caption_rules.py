"""The rules for captions: one line of text, neither empty nor endless, and without banned words.

The rules look at the words as they were written, before prefix, trigger and suffix.

===================  ===================================================================
caption-not-utf8     a caption file in an encoding that is not known (``components.image.caption_text``)
caption-empty        nothing but white space
caption-too-short    below ``min_characters``
caption-too-long     above ``max_characters``, or a file too large for a caption
caption-banned       a word of ``banned``: the image is rejected, whatever other sources have
===================  ===================================================================
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from components.caption.config import CaptionConfig
from components.errors import ImageRejected

# A caption file beyond this size is not even read, in bytes.
LARGEST_FILE = 1 << 20

BANNED = "caption-banned"


def one_line(text: str) -> str:
    """Return text with every run of white space and control characters made one space."""
    printable = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return " ".join(printable.split())


def captions_of(text: str, config: CaptionConfig) -> list[str]:
    """Return the captions that a text holds, at least one, by the setting ``lines``.

    Raises:
        ImageRejected: If none can be used, with the first reason; if any holds a banned word.
    """
    lines = [text] if config.lines == "join" else [line for line in text.splitlines() if one_line(line)]
    return usable((lines or [text])[: 1 if config.lines == "first" else None], config)


def usable(texts: Sequence[str], config: CaptionConfig) -> list[str]:
    """Return the texts that can be used as captions, each as one line.

    Raises:
        ImageRejected: If there is none, with the first reason; if any holds a banned word.
    """
    captions, problems = [], []
    for text in texts:
        try:
            captions.append(check(text, config))
        except ImageRejected as problem:
            if problem.reason == BANNED:
                raise
            problems.append(problem)
    if not captions:
        raise problems[0]
    return captions


def check(text: str, config: CaptionConfig) -> str:
    """Return a caption as one line, once it has passed the rules.

    Raises:
        ImageRejected: With the rule, the value and what was expected.
    """
    caption = one_line(text)
    if not caption:
        raise ImageRejected("caption-empty", f"{len(text)} characters, all of them white space; write a caption")
    if word := _banned_word(caption, config.banned):
        raise ImageRejected(BANNED, f"it holds {word!a}, one of the {len(config.banned)} banned words (banned)")
    if len(caption) < config.min_characters:
        raise ImageRejected(
            "caption-too-short", f"{len(caption)} characters, at least {config.min_characters} (min_characters)"
        )
    if len(caption) > config.max_characters:
        raise ImageRejected(
            "caption-too-long", f"{len(caption)} characters, at most {config.max_characters} (max_characters)"
        )
    return caption


def _banned_word(caption: str, words: Sequence[str]) -> str | None:
    """Return the first banned word that stands whole in a caption, in whatever case."""
    folded = caption.casefold()
    # Not \b, which needs a letter at the word's edge: "c++" is banned as it stands.
    return next((word for word in words if re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", folded)), None)
