"""What the report counts and says: the account, the attempts, the verdict, the words."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from components.accounting.ledger import LedgerLine
from components.html.formatting import distinct, duration, facts, number, one_line, percent
from components.model.champion import Champion
from components.model.metric_results import FORMAT, MetricResult, Unit
from components.report.account import account, ledger_seconds, wall_seconds
from components.report.attempts import attempts
from components.report.overview import badge, base_share, figures, headline, judges, publication
from components.report.records import Evaluation, Records, RunEvent, StepMetrics, StepRecord
from components.report.summary import markdown
from components.report.tables import metric_rows, step_rows


def step(name: str, started: float = 0.0, seconds: float = 1.0, **more: Any) -> StepRecord:
    return StepRecord.model_validate({"step": name, "status": "done", "started": started, "seconds": seconds, **more})


def event(time: float, name: str, **more: Any) -> RunEvent:
    return RunEvent.model_validate({"time": time, "event": name, **more})


def count(status: str = "SUCCEEDED", **records: Any) -> dict[str, Any]:
    return account(Records(run="r", **records), status, {})


def test_an_empty_run_has_an_account() -> None:
    numbers = count()

    assert numbers["status"] == "succeeded"
    assert (numbers["images"], numbers["goodput"], numbers["samples_per_second"], numbers["wall_seconds"]) == (
        None,
    ) * 4
    assert (numbers["steps"], numbers["preemptions"], numbers["steps_lost"], numbers["rejected"]) == (0, 0, 0, 0)
    assert "did not begin" in headline(numbers)


def test_groups_of_a_step_add_up() -> None:
    steps = (
        step("latents", 5, 3, group="000", result={"encoded": 4, "reused": 1, "shards": 1}),
        step("latents", 6, 4, group="001", result={"encoded": 0, "reused": 9, "shards": 2}),
    )
    numbers = count(steps=steps)

    assert numbers["seconds"] == {"latents": 7.0}
    assert (numbers["encoded"], numbers["reused"]) == (4, 10)
    assert wall_seconds(steps) == 5.0, "groups that ran side by side take their time once"
    (row,) = step_rows(steps)
    assert (row.groups, row.facts) == (2, "encoded\xa04 · reused\xa010 · shards\xa03")


def test_the_first_failed_step_is_what_failed() -> None:
    steps = (
        step("ingest"),
        step("latents", 1, group="003", status="failed", error="disk full"),
        step("train", 2, status="failed", error="no data"),
    )
    numbers = count("FAILED", steps=steps)

    assert numbers["error"] == {"step": "latents 003", "message": "disk full"}
    kind, words = badge(numbers)
    assert kind == "bad"
    assert "latents 003" in words
    assert "latents 003" in publication(numbers)


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
def test_a_run_that_was_stopped_has_not_failed(status: str) -> None:
    steps = (step("ingest"), step("train", 1, status="stopped", error="asked to stop"))
    numbers = count(status, steps=steps)
    assert (numbers["status"], numbers["error"], numbers["stopped"]) == ("stopped", None, "train")
    assert badge(numbers) == ("fair", "Stopped in train")
    assert "was stopped in train" in publication(numbers)
    between = count("CANCELLED", steps=(step("ingest"),))
    assert (between["status"], between["stopped"]) == ("stopped", "the pipeline")
    failed = count(status, steps=(*steps, step("evaluate", 2, status="failed", error="no data")))
    assert (failed["status"], failed["stopped"]) == ("failed", None)


def test_a_run_that_goes_on_is_running() -> None:
    numbers = count("RUNNING", steps=(step("ingest"),))
    assert (numbers["status"], badge(numbers)) == ("running", ("fair", "Running"))
    assert "not" not in badge(numbers).text
    assert publication(numbers) == "Nothing is published yet: the run goes on."


def test_a_pipeline_that_failed_without_a_word_failed() -> None:
    numbers = count("FAILED", steps=(step("ingest"), step("train", 1)))

    assert numbers["error"]["step"] == "the pipeline"
    assert "train" in numbers["error"]["message"]
    assert "ingest" not in numbers["error"]["message"]


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"better": False, "reason": "worse by 3"}, "This model was not published: worse by 3"),
        ({"better": True}, "The model is good enough, but there is no record of the publish step."),
        (None, "Nothing was published, since the model was not evaluated."),
    ],
)
def test_why_nothing_was_published(evaluation: dict[str, Any] | None, said: str) -> None:
    record = evaluation and Evaluation.model_validate({"format": FORMAT, **evaluation})
    assert publication(count(evaluation=record)) == said


def champion(weights: str, run: str = "r") -> Champion:
    return Champion("new", "models/m/new", run, 9, {}, "m", "d", weights, 1.0)


def test_what_is_published_has_the_weights_that_were_evaluated() -> None:
    evaluation = Evaluation.model_validate({"format": FORMAT, "weights_sha256": "aa", "better": False, "reason": "no."})
    published = count(evaluation=evaluation, champion=champion("aa", run="another"))
    assert (published["published"], badge(published).text) == ("models/m/new", "Published")
    retrained = count(evaluation=evaluation, champion=champion("bb"))
    assert (retrained["published"], badge(retrained)) == (None, ("fair", "Not published"))
    assert publication(retrained) == ("This model was not published: no. The published model is still models/m/new."), (
        "its run's name is that of the champion, since an earlier training of the run was published"
    )
    without = count(champion=champion("bb"))
    assert without["published"] is None


def test_what_was_measured_before_the_last_start_is_not_passed_off_as_new() -> None:
    evaluation = Evaluation.model_validate(
        {"format": FORMAT, "metrics": {"x": vars(metric("Accuracy", "share", 0.5, None))}}
    )
    failed = (step("index"), step("train", 2, status="failed", error="no data"))
    assert "before the run was last started" in headline(count("FAILED", steps=failed, evaluation=evaluation))
    for done in ((), (step("evaluate"),)):
        assert headline(count(steps=done, evaluation=evaluation)) == "Accuracy 50\xa0%."


def test_how_much_of_the_base_is_in_the_weights_is_said() -> None:
    def said(share: float | None) -> tuple[str, tuple[str, ...]]:
        evaluation = Evaluation.model_validate({"format": FORMAT, "base_share": share})
        numbers = count(evaluation=evaluation)
        (notes,) = (figure.notes for figure in figures(numbers) if figure.label == "Training")
        return base_share(numbers), notes

    assert said(None) == ("", ())
    assert "less than 0.1\xa0% of it is the base" in said(1e-20)[0]
    assert said(1e-20)[1] == ()
    assert "90.5\xa0% of it is the base" in said(0.9048)[0]
    assert said(0.9048)[1] == ("90.5\xa0% of the weights is still the base",)


def test_who_judges_is_named_with_what_it_cannot_see() -> None:
    texts = {"judge": "a cat", "caveat": "It only sees mice."}
    accuracy = {**vars(metric("Accuracy", "share", 1.0, None)), **texts}
    evaluation = Evaluation.model_validate({"format": FORMAT, "metrics": {"x": accuracy}})
    numbers = count(evaluation=evaluation)
    assert "Accuracy 100\xa0%, judged by a cat" in headline(numbers)
    assert judges(numbers) == ["Accuracy is judged by a cat. It only sees mice."]
    (row,) = metric_rows(evaluation)
    assert "It only sees mice" in row.meaning


def test_times_and_counts_that_stand_together_are_of_the_same_thing() -> None:
    lines = tuple(LedgerLine(attempt=n, state=state, seconds=4) for n in (1, 2) for state in ("useful", "lost"))
    events = tuple(event(n, "attempt-started") for n in (1, 2))
    told = {
        figure.label: figure for figure in figures(count(steps=(step("report", 90, 2),), ledger=lines, events=events))
    }
    assert told["Training time"].value == "16\xa0s"
    assert told["Training time"].notes[:2] == ("2\xa0attempts in all", "50\xa0% goodput")
    assert (told["Wall time"].value, told["Wall time"].notes) == ("2.0\xa0s", ("all steps, since the last start",))


def test_goodput_is_the_useful_share_of_all_states() -> None:
    lines = [LedgerLine(attempt=1, state=state, seconds=seconds) for state, seconds in [("useful", 3), ("lost", 1)]]
    told = ledger_seconds(lines)
    assert (told["useful"], told["lost"], sum(told.values())) == (3, 1, 4)
    assert count(ledger=tuple(lines))["goodput"] == 0.75


def test_without_a_ledger_speed_is_told_from_the_steps() -> None:
    metrics = tuple(StepMetrics(step=index, samples=64, seconds=0.5) for index in (1, 2, 3))
    numbers = count(metrics=metrics)

    assert numbers["samples_per_second"] == 128
    assert numbers["steps"] == 3


def test_what_held_training_up_is_a_share_of_all_its_time() -> None:
    metrics = tuple(
        StepMetrics(step=step, samples=64, seconds=2.0, data_wait=0.5, checkpoint_stall=stall, mfu=mfu)
        for step, stall, mfu in ((1, 0.0, 0.3), (2, 1.0, 0.5))
    )
    numbers = count(metrics=metrics)

    assert numbers["data_wait_share"] == 0.2
    assert numbers["checkpoint_stall_share"] == 0.2
    assert numbers["mfu"] == pytest.approx(0.4)
    assert count(metrics=(StepMetrics(step=1, seconds=2.0),))["data_wait_share"] is None


def test_the_last_and_the_best_loss_on_held_out_images() -> None:
    losses = {0: 1.0, 10: None, 20: 0.2, 30: 0.3}
    numbers = count(validation=tuple(StepMetrics(step=step, loss=loss) for step, loss in losses.items()))

    assert numbers["validation_loss"] == 0.3
    assert (numbers["validation_loss_best"], numbers["validation_loss_best_step"]) == (0.2, 20)


def test_steps_that_were_lost_and_not_done_again_do_not_count() -> None:
    metrics = tuple(StepMetrics(step=index) for index in range(1, 21))
    events = (event(0, "attempt-started"), event(9, "attempt-ended", exit_code=137, step=20, steps_lost=5))

    numbers = count(metrics=metrics, events=events)

    assert (numbers["steps"], numbers["steps_lost"], numbers["preemptions"]) == (15, 5, 0)


def test_attempts_are_told_from_events() -> None:
    told = attempts(
        [
            event(0, "checkpoint", step=1),  # of no attempt
            event(10, "attempt-started", attempt=0, ranks=4),
            event(12, "spot-notice", rank=2),
            event(13, "attempt-ended", exit_code=75, step=7, steps_lost=0),
            event(20, "attempt-started", attempt=1, ranks=2),
            event(21, "resumed", step=7),
            event(25, "checkpoint", step=9),
        ]
    )

    first, second = told
    assert (first.number, first.ranks, first.seconds, first.outcome) == (1, 4, 3, "preempted")
    assert first.notices == [(12, 2)]
    assert (second.first_step, second.last_step, second.seconds) == (7, 9, 5)
    assert second.outcome.startswith("no end")


def metric(label: str, unit: Unit, value: float | None, reference: float | None, reason: str = "") -> MetricResult:
    status: Literal["measured", "not run"] = "not run" if value is None else "measured"
    return MetricResult(label, "what it is", unit, "lower", "how", 120, status, value, reference, "real ones", reason)


def test_metrics_are_shown_as_they_describe_themselves_the_deciding_ones_first() -> None:
    metrics = {
        "a": metric("A", "share", None, None, "there is no judge"),
        "b": metric("B", "share", 0.5, 1.0),
        "c": metric("C", "number", 31.25, 0.2),
    }
    evaluation = Evaluation(format=FORMAT, metrics=metrics, decided_by=["c"], better=True)

    rows = metric_rows(evaluation)

    assert [row[:3] for row in rows] == [
        ("A", "–", "–"), ("B", "50\xa0%", "100\xa0% (real ones)"), ("C", "31.2", "0.2 (real ones)")
    ]  # fmt: skip
    assert "there is no judge" in rows[0].meaning
    numbers = count(evaluation=evaluation)
    assert headline(numbers) == "C 31.2 (real ones: 0.2). B 50\xa0% (real ones: 100\xa0%)."
    assert [figure.label for figure in figures(numbers)][:3] == ["C", "A", "B"]


def test_markdown_of_a_hostile_run_holds_no_markup() -> None:
    text = markdown(account(Records(run="[a](http://x) | *b*\n# c <i>"), "SUCCEEDED", {}))

    assert text.splitlines()[0] == "# \\[a\\]\\(http://x\\) \\| \\*b\\*\\\\n\\# c &lt;i&gt;"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"), (0, "0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"),
        (221, "3 min 41 s"), (3599.7, "1 h"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (1e8, "1,157 d 9 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, said: str) -> None:
    assert duration(seconds).replace("\xa0", " ") == said


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (1, "100 %"), (0.9999, "99.9 %"), (0.0001, "0.1 %"), (0.9833, "98.3 %"), (0.8, "80 %"), (None, "–")],
)
def test_only_all_is_a_hundred_per_cent(share: float | None, said: str) -> None:
    assert percent(share).replace("\xa0", " ") == said


def test_numbers_keep_three_digits() -> None:
    assert [number(value) for value in (3.2149, 0.000123456, 12345.6, None)] == ["3.21", "0.000123", "12,346", "–"]


def test_facts_are_the_numbers_of_a_result() -> None:
    result = {
        "images": 1797,
        "better": True,
        "share": 0.98333,
        "path": "models/x",
        "shards": [1],
        "none": None,
        "seconds": 3.0,
    }
    assert facts(result).replace("\xa0", " ") == "images 1,797 · better yes · share 0.983"


def test_names_show_what_they_hold() -> None:
    assert one_line("a\n\u202eb\x1b\udcff é 🙂") == "a\\n\\u202eb\\x1b\\udcff é 🙂"


@pytest.mark.parametrize(
    ("prompts", "labels"),
    [
        (["a digit one, ink", "a digit two, ink"], ["one", "two"]),
        (["a cat", "a cat on a mat"], ["a cat", "a cat on a mat"]),
        (["a dog"], ["a dog"]),
        (["same", "same"], ["same", "same"]),
        ([], []),
    ],
)
def test_labels_tell_prompts_apart(prompts: list[str], labels: list[str]) -> None:
    assert distinct(prompts) == labels
