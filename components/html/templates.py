"""The templates of pages that load nothing from anywhere: all of their text is escaped, and ``page.css`` is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.html import formatting


def environment(folder: Path) -> Environment:
    """Return what renders the templates of a folder; they may include ``page.css``."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "duration", "number", "percent", "plural", "one_line", "moment", "usd"):
        environment.filters[name] = getattr(formatting, name)
    return environment


def _shown(value: Any) -> Any:
    """Return what a template puts on the page: text without the controls that could hide or reorder it."""
    return formatting.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
