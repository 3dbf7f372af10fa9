"""What comes with an image in words: its caption, its licence and where it is from, as many tools write them.

The names of the fields are those of img2dataset, BLIP's caption files, diffusers and `datasets`; capitals do not
matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from components.errors import ImageRejected

BROKEN = "metadata-broken"
# A caption beyond this many characters is cut one behind it: no setting of the caption step takes so long a one, and
# it says so.
LONGEST_CAPTION = 100_000
# A JSON file beside an image is not read beyond this size, in bytes.
LARGEST_FILE = 1 << 20

_CAPTION = ("text", "caption")
_LICENSE = ("license", "licence", "license_url")
_SOURCE = ("url", "source", "image_url")
_LONGEST_NAME = 2000
# How datasets say that they do not know; "?" is LAION's.
_UNKNOWN = ("", "?", "unknown", "none", "null", "n/a")


class Words(NamedTuple):
    """What is told of an image; None for what is not."""

    text: str | None = None
    license: str | None = None
    source: str | None = None


def words_in(values: Mapping[str, Any]) -> Words:
    """Return what an object of metadata tells."""
    told = {str(key).lower(): value for key, value in values.items()}
    caption = next((text for key in _CAPTION if (text := _text(told.get(key))) is not None), None)
    license = next((name for key in _LICENSE if (name := _name(told.get(key)))), None)
    source = next((name for key in _SOURCE if (name := _name(told.get(key)))), None)
    return Words(caption, license if license and license.casefold() not in _UNKNOWN else None, source)


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Return the JSON object that some bytes are.

    Raises:
        ImageRejected: ``metadata-broken``.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter from thousands of nested brackets
        raise ImageRejected(BROKEN, f"not JSON ({str(error)[:200]}); correct it") from None
    if not isinstance(values, dict):
        raise ImageRejected(BROKEN, f"a JSON {type(values).__name__}, expected an object such as {{'text': …}}")
    return values


def clean(text: str) -> str:
    """Return text that can be written as UTF-8 and is not endless: lone surrogates become question marks."""
    return text[: LONGEST_CAPTION + 1].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(value: Any) -> str | None:
    """Return a caption; of several the first."""
    if isinstance(value, list) and value:
        value = value[0]
    return clean(value) if isinstance(value, str) else None


def _name(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return clean(value[:_LONGEST_NAME]).strip() or None if isinstance(value, str) else None
