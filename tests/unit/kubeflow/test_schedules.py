"""Recurring runs are replaced only where they differ, never run twice at a time, and belong to who made them."""

from __future__ import annotations

import itertools

import pytest

from components.errors import ConfigError
from pipeline.kubeflow.cron import seconds_first, without_seconds
from pipeline.kubeflow.records import RecurringRun
from pipeline.kubeflow.schedules import RecurringSpec, ScheduleChange, owner_of, plan

SPEC = RecurringSpec(
    "nightly", "0 0 3 * * *", {"recipe": "demo", "workdir": "s3://b/w"}, "ir-1", "darkroom", "account", True, "release"
)
OTHER = SPEC._replace(cron="0 0 4 * * *")
PAUSED = SPEC._replace(enabled=False)


def recurring_run(name: str, description: str, id: str = "1", enabled: bool = True) -> RecurringRun:
    return RecurringRun(id, name, description, enabled, "", {}, None)


def run_of(spec: RecurringSpec, id: str = "1", enabled: bool = True) -> RecurringRun:
    return recurring_run(spec.name, spec.description, id, enabled)


@pytest.mark.parametrize(
    ("current", "specs", "changes"),
    [
        ([], [], []),
        ([], [SPEC], ["create nightly ", "enable nightly "]),
        ([], [PAUSED], ["create nightly "]),
        ([run_of(SPEC)], [SPEC], ["keep nightly 1"]),
        ([run_of(SPEC)], [PAUSED], ["disable nightly 1"]),
        ([run_of(SPEC, enabled=False)], [SPEC], ["enable nightly 1"]),
        ([run_of(OTHER)], [SPEC], ["create nightly ", "delete nightly 1", "enable nightly "]),
        ([run_of(OTHER)], [PAUSED], ["create nightly ", "delete nightly 1"]),
        ([run_of(SPEC)], [], ["delete nightly 1"]),
        # Stopped half-way: the new one was created, the old one not yet deleted; or deleted, and not yet enabled.
        ([run_of(OTHER), run_of(SPEC, "2", False)], [SPEC], ["delete nightly 1", "enable nightly 2"]),
        ([run_of(SPEC, "2", False)], [SPEC], ["enable nightly 2"]),
        # Made twice by two that ran at once: the one that runs stays.
        ([run_of(SPEC, "1", False), run_of(SPEC, "2")], [SPEC], ["delete nightly 1", "keep nightly 2"]),
        # Of others.
        ([run_of(SPEC._replace(owner="other", name="weekly"))], [], []),
        ([recurring_run("weekly", "made in the dashboard")], [], []),
    ],
)
def test_what_is_done(current: list[RecurringRun], specs: list[RecurringSpec], changes: list[str]) -> None:
    assert [f"{one.do} {one.name} {one.id}" for one in plan(current, specs, "release", True)] == changes


def test_only_a_release_removes_what_it_does_not_list() -> None:
    assert plan([run_of(SPEC)], [], "release", False) == []


@pytest.mark.parametrize("description", [SPEC._replace(owner="other").description, "made in the dashboard", ""])
def test_what_belongs_to_others_is_left_alone(description: str) -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        plan([recurring_run("nightly", description)], [SPEC], "release", True)


def carry_out(
    current: list[RecurringRun], changes: list[ScheduleChange], spec: RecurringSpec, most: int
) -> tuple[list[RecurringRun], int]:
    """Return what there is after the first changes, and how many were enabled at the same time."""
    now, peak = list(current), 0
    for change in changes[:most]:
        target = change.id or "new"
        if change.do == "create":
            now.append(run_of(spec, "new", False))
        elif change.do == "delete":
            now = [one for one in now if one.id != target]
        elif change.do in ("enable", "disable"):
            now = [one._replace(enabled=change.do == "enable") if one.id == target else one for one in now]
        peak = max(peak, sum(one.enabled for one in now))
    return now, peak


@pytest.mark.parametrize("stopped_after", range(5))
def test_stopped_anywhere_the_next_time_ends_the_same_and_never_two_run(stopped_after: int) -> None:
    states = [run_of(SPEC, "1"), run_of(SPEC, "1", False), run_of(OTHER, "1"), run_of(OTHER, "1", False)]
    for before, spec in itertools.product([[], *([one] for one in states)], [SPEC, PAUSED]):
        there, peak = carry_out(before, plan(before, [spec], "release", True), spec, stopped_after)
        there, again = carry_out(there, plan(there, [spec], "release", True), spec, 9)
        assert [(one.description, one.enabled) for one in there] == [(spec.description, spec.enabled)]
        assert max(peak, again) <= 1


@pytest.mark.parametrize("change", [{"cron": "0 1 1 * * *"}, {"version": "ir-2"}, {"service_account": ""},
                                    {"experiment": "x"}, {"parameters": {"recipe": "sd15-full"}}])  # fmt: skip
def test_each_part_makes_another_one(change: dict[str, object]) -> None:
    assert SPEC._replace(**change).digest != SPEC.digest  # type: ignore[arg-type]


MARK = "[darkroom evil " + 64 * "0" + "]"


@pytest.mark.parametrize("parameters", [{"recipe": f"a\n{MARK}"}, {"recipe": MARK}, {"recipe": "a", "workdir": MARK}])
def test_a_description_says_whose_it_is_whatever_the_recipe_says(parameters: dict[str, str]) -> None:
    hostile = SPEC._replace(parameters=parameters)
    assert owner_of(hostile.description) == "release"
    assert "\n" not in hostile.description
    assert plan([run_of(hostile, "1")], [hostile], "release", True) == [ScheduleChange("keep", "nightly", "1")]


def test_the_usual_five_fields_are_the_same_as_six() -> None:
    assert SPEC._replace(cron="0 3 * * *").digest == SPEC.digest


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("30 0 3 * * *", "30 0 3 * * *"),
        ("*/15 2-6/2 1,15 * MON-FRI", "0 */15 2-6/2 1,15 * MON-FRI"),
        ("0 0 9 ? * 2-6", "0 0 9 ? * 2-6"),
        ("0 0 29 2 *", "0 0 0 29 2 *"),
        ("@weekly", "0 0 0 * * 0"),
        ("@midnight", "0 0 0 * * *"),
        ("@hourly", "0 0 * * * *"),
        ("@monthly", "0 0 0 1 * *"),
        ("@annually", "0 0 0 1 1 *"),
        # A day that some of the months have, or some of the days, or that a day of the week stands in for.
        ("0 0 31 mar,apr *", "0 0 0 31 mar,apr *"),
        ("0 0 31 2/2 *", "0 0 0 31 2/2 *"),
        ("0 0 15,31 4 *", "0 0 0 15,31 4 *"),
        ("0 0 31 2 mon", "0 0 0 31 2 mon"),
    ],
)
def test_a_cron_expression_gets_seconds(given: str, taken: str) -> None:
    assert seconds_first(given) == taken


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "0 fields"),
        ("@every 1h", "2 fields"),
        ("* * * * * * *", "7 fields"),
        ("60 * * * *", "minutes '60'.* 0-59"),
        ("0 24 * * *", "hours '24'"),
        ("0 0 * * 7", "day of the week '7'.* 0-6 .*sun-sat"),
        ("0 0 0 * *", "day of the month '0'"),
        ("*/0 * * * *", r"minutes '\*/0': a step of 0"),
        ("0 0 32 * *", "day of the month '32'.* 1-31"),
        ("1,,2 * * * *", "minutes '1,,2': not understood"),
        ("9-5 * * * *", "minutes '9-5'.* 9 .* 5"),
        ("a b c d e", "minutes 'a'"),
        ("0 0 30 2 *", "day 30"),
        ("0 0 31 4,6 *", "day 31"),
        ("0 0 31 apr *", "day 31"),
        ("0 0 31 4-6/2 ?", "day 31"),
        ("*-5 * * * *", r"minutes '\*-5'"),
    ],
)
def test_what_is_no_cron_expression_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seconds_first(given)


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/5 1,2 * jan-mar mon"])
def test_what_a_person_types_comes_back_from_kubeflow_as_it_was(cron: str) -> None:
    assert without_seconds(seconds_first(cron)) == cron
    assert without_seconds(f"30 {cron}") == f"30 {cron}", "five fields cannot say that"
