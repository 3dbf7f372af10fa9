"""What a person reads: every survivor as a diff, then how many each module let through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.mutants.mutants import Mutant
from tests.mutants.tables import Accepted

ENOUGH = 0.9


class Trial(NamedTuple):
    """What became of a mutant: pytest's exit status, None if its tests took longer than the limit in seconds."""

    mutant: Mutant
    status: int | None
    limit: float

    @property
    def caught(self) -> bool:
        """Whether a test failed, or could not so much as import the mutant."""
        return self.status not in (0, None)


def print_survivor(trial: Trial) -> None:
    """Print what no test noticed."""
    late = f": no test failed within {trial.limit:.0f} s" if trial.status is None else ""
    print(f"\n{trial.mutant.name} {trial.mutant.module}:{trial.mutant.line}{late}\n{trial.mutant.diff()}", flush=True)


def print_table(
    population: Mapping[str, Sequence[Mutant]],
    drawn: Iterable[Mutant],
    trials: Sequence[Trial],
    accepted: Mapping[str, Accepted],
) -> float:
    """Print each module's line, the accepted mutants with their reasons, and the score; return the score."""
    excused = [mutant for mutant in drawn if mutant.name in accepted]
    print(f"\n{'module':40}{'mutants':>8}{'tried':>8}{'caught':>8}{'accepted':>9}")
    for module, mutants in population.items():
        caught = [trial.caught for trial in trials if trial.mutant.module == module]
        without = sum(mutant.module == module for mutant in excused)
        print(f"{module:40}{len(mutants):8}{len(caught):8}{sum(caught):8}{without:9}")
    for mutant in excused:
        print(f"accepted: {mutant.name} {mutant.module}:{mutant.line}: {accepted[mutant.name].reason}")
    caught_of_all = sum(trial.caught for trial in trials)
    score = caught_of_all / len(trials) if trials else 1.0
    print(f"caught: {caught_of_all} of {len(trials)} mutants, {score:.1%}; enough is {ENOUGH:.0%}")
    return score
