"""Check an image's licence against those that are allowed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.errors import ImageRejected


def check_license(license: str | None, allowed: Iterable[str], *, keep_unknown: bool) -> None:
    """Check that an image's licence is allowed.

    Args:
        license: The image's licence as its metadata write it; None if they have none.
        allowed: Licences that are allowed; empty allows all.
        keep_unknown: Whether an image without a licence passes.

    Raises:
        ImageRejected: ``license-not-allowed`` or ``license-unknown``.
    """
    names = tuple(allowed)
    expected = f"allowed: {', '.join(names)} (allowed_licenses)" if names else "every named licence is allowed"
    if license is None:
        if not keep_unknown:
            raise ImageRejected(
                "license-unknown", f"the metadata name no licence; {expected}; to keep it set unknown_license to keep"
            )
    elif names and _normalized(license) not in map(_normalized, names):
        raise ImageRejected("license-not-allowed", f"licence {license!a}; {expected}")


def _normalized(license: str) -> str:
    """Return a licence in the form in which it is compared: "CC BY 4.0", "cc_by_4.0" and "CC-BY-4.0" are the same."""
    return re.sub(r"[\s_-]+", "-", license.strip().casefold())
