"""Whatever JSON a run left behind, its report is written."""

from __future__ import annotations

import contextlib
import io
import json
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from components.accounting.ledger import LEDGER, STATES
from components.model.metric_results import FORMAT
from components.progress import Progress
from components.report.config import ReportConfig
from components.report.reporting import report
from components.storage.checksums import with_checksum
from components.storage.open import open_storage

words = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["failed", "train", "a/b", "<b>", "\ud800", "evaluation/00.png"]
)
numbers = st.integers(-(10**20), 10**20) | st.floats() | st.integers(0, 400)
anything = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
times = st.floats(0, 1e11) | anything
small = st.integers(0, 500) | anything


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with these fields, any of them missing or odd, and sometimes no object at all."""
    return st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(fields) | anything


events = st.sampled_from(
    ["attempt-started", "resumed", "spot-notice", "preempted", "checkpoint", "attempt-ended", "finished"]
)
states = st.sampled_from(STATES)
pools = st.sampled_from(["spot", "on-demand", "local"]) | words
prompt = record(prompt=words, images=small, metrics=record(x=numbers, y=words), sheet=words)
metric = st.fixed_dictionaries(
    {
        "label": words, "description": words, "unit": st.sampled_from(["share", "number"]),
        "direction": st.sampled_from(["higher", "lower"]), "estimator": words, "samples": st.integers(0, 400),
        "status": st.sampled_from(["measured", "not run"]), "value": numbers | st.none(),
        "reference": numbers | st.none(), "reference_label": words, "reason": words,
    }
) | anything  # fmt: skip
size = st.lists(small, min_size=2, max_size=2) | anything
DOCUMENTS = {
    "config.json": record(name=words, seed=anything, model=record(base=words), launch=record(budget_usd=numbers)),
    "steps/train.json": record(
        step=words, group=words, status=words, started=times, seconds=times, result=anything, error=words
    ),
    "plan.json": record(
        pool=words,
        expected=record(hours=numbers, usd=numbers, goodput=numbers, interruptions=numbers),
    ),
    "samples/index.json": record(prompts=st.lists(words, max_size=3), size=size, steps=st.lists(small, max_size=3)),
    "evaluation/evaluation.json": record(
        prompts=st.lists(prompt, max_size=3), size=size, better=anything, reason=words,
        format=st.just(FORMAT), metrics=record(x=metric, y=metric), decided_by=st.lists(words, max_size=2),
    ),
}  # fmt: skip
LINES = {
    "metrics.jsonl": record(
        step=small,
        loss=numbers,
        lr=numbers,
        grad_norm=numbers,
        samples=small,
        seconds=times,
        data_wait=times,
        checkpoint_stall=times,
        mfu=numbers,
    ),
    "validation.jsonl": record(step=small, loss=numbers, samples=small, seconds=times),
    "events.jsonl": record(
        time=times, event=events, attempt=small, ranks=small, rank=small, step=small, steps_lost=small, exit_code=small
    ),
    "ledger.jsonl": record(
        attempt=small,
        state=words | states,
        seconds=times,
        nodes=small,
        pool=pools,
        instance=words,
        usd_per_hour=numbers,
    ),
}


def sealed(line: Any) -> Any:
    """Return a line of the ledger as its writer would write it, if it could be written."""
    with contextlib.suppress(TypeError, ValueError):
        return with_checksum(line)
    return line


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=DOCUMENTS),
    st.fixed_dictionaries({}, optional={key: st.lists(line, max_size=6) for key, line in LINES.items()}),
    words,
)
def test_the_report_is_always_written(documents: dict[str, Any], lines: dict[str, list[Any]], status: str) -> None:
    workdir = open_storage("memory://report-fuzz")
    workdir.delete_tree("runs")
    for key, document in documents.items():
        workdir.write(f"runs/first/{key}", json.dumps(document).encode())
    for key, listed in lines.items():
        if key == LEDGER:
            listed = [sealed(line) for line in listed]
        workdir.write(f"runs/first/{key}", b"".join(json.dumps(line).encode() + b"\n" for line in listed))

    told = report(ReportConfig(), "first", status, workdir, Progress(stream=io.StringIO()))

    HTMLParser().feed(workdir.read(told["report"]).decode())
    assert json.loads(workdir.read(told["numbers"]))["run"] == "first"
