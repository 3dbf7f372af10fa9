"""Caption, licence and origin of an image in a JSON object or a row of CSV, as many tools write them.

The names of the fields are those of img2dataset, BLIP's caption files, diffusers, `datasets`, gallery-dl and others;
upper and lower case are the same. The names of captions are a setting, ``caption_fields``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.errors import ImageRejected

BROKEN = "metadata-broken"
# A longer caption is cut to one character more than this. No setting of the caption step allows so long a caption, so
# that step rejects it.
LONGEST_CAPTION = 100_000
# A larger JSON or caption file beside an image is not read here, in bytes.
LARGEST_FILE = 1 << 20

_LICENSE = ("license", "licence", "license_url")
_SOURCE = ("url", "source", "image_url")
_LONGEST_NAME = 2000
# How datasets write that they do not know; "?" is LAION's.
_UNKNOWN = ("", "?", "unknown", "none", "null", "n/a")


class MetadataFields(NamedTuple):
    """What metadata say of one image; None for what they do not say."""

    text: str | None = None
    license: str | None = None
    source: str | None = None


def metadata_fields(values: Mapping[str, Any], caption_fields: Sequence[str]) -> MetadataFields:
    """Return the fields that an object of metadata has.

    Args:
        values: The object.
        caption_fields: Names of fields that hold captions, in lower case; the first that has one counts.

    Raises:
        ImageRejected: ``metadata-broken``, if it has such fields and none of them holds text.
    """
    by_name = {str(key).lower(): value for key, value in values.items()}
    license = next((name for key in _LICENSE if (name := _name(by_name.get(key)))), None)
    source = next((name for key in _SOURCE if (name := _name(by_name.get(key)))), None)
    caption = _caption(by_name, caption_fields)
    return MetadataFields(caption, license if license and license.casefold() not in _UNKNOWN else None, source)


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON object.

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


def clean_text(text: str) -> str:
    """Return text that can be written as UTF-8 and has a bounded length; lone surrogates become question marks."""
    return text[: LONGEST_CAPTION + 1].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _caption(by_name: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    """Return the first caption that is not blank; a blank one if there is no other, so that it can be reported."""
    values = {name: by_name[name] for name in fields if by_name.get(name) is not None}
    texts = [text for name, value in values.items() if (text := _text(name, value)) is not None]
    if values and not texts:
        name, value = next(iter(values.items()))
        raise ImageRejected(BROKEN, f"its {name} is {value!a:.80}, expected text; correct it")
    return next((text for text in texts if text.strip()), texts[0] if texts else None)


def _text(name: str, value: Any) -> str | None:
    """Return a caption: the first if there are several, but all words of a list of tags."""
    if isinstance(value, list):
        texts = [one for one in value if isinstance(one, str)]
        value = ", ".join(texts) if name.startswith("tag") else (texts or [""])[0]
    return clean_text(value) if isinstance(value, str) else None


def _name(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return clean_text(value[:_LONGEST_NAME]).strip() or None if isinstance(value, str) else None
