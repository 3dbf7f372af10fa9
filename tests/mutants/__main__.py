"""Change the modules that carry the promises, one place at a time, and see whether the tests that own them notice.

    python -m tests.mutants [--sample 15|all] [--jobs 2] [PART-OF-A-MODULE'S-NAME …]

`operators` says what a change may be, `owners.yaml` which tests own which module, `accepted.txt` which changes no test
needs to notice, and why. A mutant is caught if a test fails. One whose tests take too long is not: a test that waits
needs a time limit of its own. Exits with 1 if less than 90 % are caught of the mutants that are not accepted.

Of mutmut, only the operators are used. Its own runner follows a mutant into the tests by what they call in their own
process, so that no test would own what only ranks execute, and it leaves out every function that is decorated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.copies import Copies, Copy
from tests.mutants.mutants import Mutant, mutants, sample
from tests.mutants.report import ENOUGH, Trial, print_survivor, print_table
from tests.mutants.tables import read_accepted, read_owners

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/mutants"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, try and report; return the exit code."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description="test the tests with mutants of the code")
    parser.add_argument("modules", nargs="*", metavar="PART", help="only modules with one of these in their names")
    parser.add_argument("--sample", default="15", help="mutants of each module, at most, or `all`")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    owners, accepted = read_owners(arguments.modules), read_accepted()
    population = {module: mutants(ROOT, module) for module in owners}
    most = None if arguments.sample == "all" else int(arguments.sample)
    drawn = [mutant for each in population.values() for mutant in sample(each, most)]
    with Copies(ROOT, BUILD, arguments.jobs) as copies:
        suites = list(dict.fromkeys(owners.values()))
        limits = dict(zip(suites, copies.map(_limit, suites), strict=True))

        def attempt(copy: Copy, mutant: Mutant) -> Trial:
            tests = owners[mutant.module]
            with copy.with_text(mutant.module, mutant.code()):
                return Trial(mutant, copy.try_tests(tests, limits[tests]), limits[tests])

        trials = []
        for trial in copies.map(attempt, [mutant for mutant in drawn if mutant.name not in accepted]):
            trials.append(trial)
            if not trial.caught:
                print_survivor(trial)
    score = print_table(population, drawn, trials, accepted)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if score >= ENOUGH else 1


def _limit(copy: Copy, tests: Sequence[str]) -> float:
    """Return how many seconds tests get, by what they take on the code as it is."""
    began = time.monotonic()
    if copy.try_tests(tests, 1800.0) != 0:
        raise SystemExit(f"without any mutant {' '.join(tests)} fails, or takes half an hour: see {BUILD}/*/log")
    return 60.0 + 4.0 * (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
