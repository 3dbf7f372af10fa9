"""The badge at the top of a page."""

from __future__ import annotations

from typing import NamedTuple


class Badge(NamedTuple):
    """The outcome in a few words; ``kind`` is ``good``, ``fair`` or ``bad``."""

    kind: str
    text: str
