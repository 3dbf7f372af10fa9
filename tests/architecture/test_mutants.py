"""The tables of `make mutants` name what is there."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.mutants import mutants
from tests.mutants.tables import read_accepted, read_owners

ROOT = Path(__file__).parents[2]


def test_modules_and_the_tests_that_own_them_are_there() -> None:
    tests = {test.partition("::")[0] for suite in read_owners().values() for test in suite}
    assert [name for name in [*read_owners(), *tests] if not (ROOT / name).is_file()] == []


def test_what_is_accepted_is_a_mutant_of_the_code_as_it_is() -> None:
    accepted = read_accepted()
    modules = {one.module for one in accepted.values()}
    assert set(accepted) <= {mutant.name for module in modules for mutant in mutants(ROOT, module)}
