"""Whether an image may be used: its licence held against those that are allowed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.errors import ImageRejected


def check_license(license: str | None, allowed: Iterable[str], *, keep_unknown: bool) -> None:
    """Let an image with an allowed licence pass.

    Args:
        license: The image's licence as its metadata have it; None where nobody tells.
        allowed: Licences that are allowed; none for all of them.
        keep_unknown: Whether an image without a known licence passes.

    Raises:
        ImageRejected: ``license-not-allowed`` or ``license-unknown``.
    """
    names = tuple(allowed)
    expected = f"allowed are {', '.join(names)} (allowed_licenses)" if names else "any that is known is allowed"
    if license is None:
        if not keep_unknown:
            raise ImageRejected(
                "license-unknown", f"no licence is told; {expected}, unknown ones not (unknown_license)"
            )
    elif names and _plain(license) not in map(_plain, names):
        raise ImageRejected("license-not-allowed", f"licence {license!a}; {expected}")


def _plain(license: str) -> str:
    """Return a licence as it is compared: "CC BY 4.0", "cc_by_4.0" and SPDX's "CC-BY-4.0" are the same."""
    return re.sub(r"[\s_-]+", "-", license.strip().casefold())
