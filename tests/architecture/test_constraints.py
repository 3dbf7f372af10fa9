"""The pins: everything that an installation takes, and nothing that only one machine knows."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MADE_BY = "# Every package of .[pipeline,train,dev] as tested. Made by `make constraints`; do not edit."


def pins() -> dict[str, str]:
    first, *lines = (ROOT / "constraints.txt").read_text("ascii").splitlines()
    assert first == MADE_BY
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!_-]+)", line) for line in lines]
    assert all(pairs), "each line is name==version, without a place or a build of its own"
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


def wanted() -> Iterator[Requirement]:
    """Yield what Darkroom requires itself, and then what that requires, here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    waiting = [Requirement(text) for text in texts]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        yield requirement
        if str(requirement) not in seen:
            seen.add(str(requirement))
            waiting += _required_by(requirement)


def _required_by(requirement: Requirement) -> Iterator[Requirement]:
    try:
        texts = requires(requirement.name) or []
    except PackageNotFoundError:
        return
    extras = requirement.extras or {""}
    for found in map(Requirement, texts):
        if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in extras):
            yield found


def test_all_that_is_required_is_pinned_to_a_release_that_serves() -> None:
    pinned = pins()
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} is not in constraints.txt: run `make constraints`"
        assert requirement.specifier.contains(Version(pinned[name]), prereleases=True), requirement


def test_the_pins_ask_for_no_cuda() -> None:
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_torch_is_the_release_that_the_makefile_asks_for() -> None:
    asked = re.search(r"^TORCH := (.+)$", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert asked is not None
    assert pins()["torch"] == asked[1] == "2.13.0"
