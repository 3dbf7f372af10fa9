"""What a person sees of a run: on a terminal of 80 columns, and in a file."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from pipeline.local.display import RunDisplay, read_event


def metric(label: str, unit: str, value: float | None, reference: float | None = None) -> dict[str, Any]:
    return {
        "label": label, "description": "", "unit": unit, "direction": "higher", "estimator": "", "samples": 120,
        "status": "measured", "value": value, "reference": reference, "reference_label": "real images", "reason": "",
    }  # fmt: skip


NUMBERS: dict[str, Any] = {
    "images": 1797, "encoded": 1797,
    "rejected": 9, "rejected_by_reason": {"truncated": 4, "duplicate": 3, "too-small": 1, "corrupt": 1},
    "steps": 400, "preemptions": 1, "steps_lost": 0, "samples_per_second": 450.1, "goodput": 0.649,
    "metrics": {
        "prompt_accuracy": metric("Prompt accuracy", "share", 1.0, 0.983),
        "frechet_distance": metric("Fréchet distance", "number", 0.2412, 0.1461),
    },
    "published": "models/demo/936c69dd190a036c", "reason": "There is no champion yet.",
}  # fmt: skip


class Screen:
    """A display that writes into memory, with a clock of its own."""

    def __init__(self, terminal: bool = False) -> None:
        self.now = 0.0
        self._file = io.StringIO()
        console = Console(
            file=self._file, width=80, height=24, force_terminal=terminal, highlight=False, color_system=None
        )
        self.display = RunDisplay(console, clock=lambda: self.now)

    def tell(self, event: str, by: str = "train", **fields: Any) -> None:
        self.display.show({"event": event, "by": by, **fields})

    def start(self, step: str, group: str | None = None) -> None:
        self.tell("step-started", by=step if group is None else f"{step} {group}", step=step, group=group)

    def end(self, step: str, result: dict[str, Any] | None, seconds: float = 2.0, **fields: Any) -> None:
        text = {"group": None, "status": "done", "error": None, "exit_code": None, **fields}
        self.tell("step-ended", by=step, step=step, seconds=seconds, result=result, **text)

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


STEPS = [
    ("ingest", {"images": 1797, "rejected": 3, "new": 1800, "changed": 0, "gone": 0}, ("1,797 images", "3 rejected")),
    ("ingest", {"images": 1, "rejected": 0, "new": 0, "changed": 0, "gone": 0}, ("1 image", "0 rejected", "0 new")),
    (
        "ingest",
        {"images": 9000, "rejected": 0, "new": 8, "changed": 1, "gone": 2000},
        ("9,000 images", "0 rejected", "8 new", "1 changed", "2,000 gone"),
    ),
    (
        "ingest",
        {"images": 1797, "rejected": 160, "new": 1797, "changed": 0, "gone": 0, "alpha": 3}
        | {"reasons": {"extreme-aspect": 150, "duplicate": 10}, "other_files": {".mp4": 12}},
        ("1,797 images", "160 rejected", "extreme-aspect 150"),
    ),
    ("autoencoder", {"trained": False}, ()),
    ("caption", {"captioned": 905, "reused": 0, "rejected": 1}, ("905 caption", "1 rejected")),
    ("caption", {"captioned": 3, "reused": 905, "rejected": 0}, ("3 caption", "905 ", "0 rejected")),
    ("clean", {"kept": 1797, "rejected_here": 12, "reused": False}, ("1,797 kept", "12 ")),
    ("clean", {"kept": 1797, "rejected_here": 12, "reused": True}, ("1,797 kept",)),
    ("latents", {"encoded": 905, "reused": 0, "shards": 2}, ("905 encoded", "2 shards")),
    ("latents", {"encoded": 0, "reused": 905, "shards": 1}, ("0 encoded", "905 ", "1 shard")),
    ("index", {"images": 1797, "held_out": 297}, ("1,797 images", "297 ", "held out")),
    ("train", {"step": 400, "attempts": 1}, ("400 steps",)),
    (
        "evaluate",
        {
            "metrics": {"x": metric("X", "share", 1.0), "y": metric("Y", "number", 0.2412)},
            "better": False,
            "reused": False,
        },
        ("X 100 %", "Y 0.241", "not better"),
    ),
    (
        "evaluate",
        {"metrics": {"x": metric("X", "share", None)}, "better": False, "reused": True},
        ("measured before",),
    ),
    ("publish", {"published": "models/demo/936c69dd190a036c"}, ("models/demo/936c69dd190a036c",)),
]


def holds(line: str, begin: str, *parts: str) -> bool:
    """Tell whether a line has this step and time in its columns, then all of these in their order, and no number more.

    Args:
        line: What is shown.
        begin: What it begins with.
        parts: What it holds besides.
    """
    rest = line.removeprefix(begin)
    numbers = re.findall(r"[\d,.]*\d", " ".join(parts))
    in_order = re.search(".*".join(map(re.escape, parts)), rest) is not None
    return line.startswith(begin + "  ") and in_order and re.findall(r"[\d,.]*\d", rest) == numbers


@pytest.mark.parametrize(("step", "result", "text"), STEPS)
def test_a_step_that_ends_is_one_line(step: str, result: dict[str, Any], text: tuple[str, ...]) -> None:
    screen = Screen()
    screen.start(step)
    screen.end(step, result, seconds=71.4)
    (line,) = screen.lines
    assert holds(line, f"{step:<11} 1 min 11 s", *text)
    assert len(line) <= 80


def test_groups_are_told_apart_and_columns_are_straight() -> None:
    screen = Screen()
    for group in ("000", "001"):
        screen.start("latents", group)
    screen.end("latents", {"encoded": 9, "reused": 0, "shards": 1}, seconds=0.01, group="001")
    screen.end("latents", {"encoded": 8, "reused": 0, "shards": 1}, seconds=12.2, group="000")
    first, second = screen.lines
    assert holds(first, "latents 001      0.0 s", "9 encoded", "1 shard")
    assert holds(second, "latents 000       12 s", "8 encoded", "1 shard")


def test_a_training_with_a_spot_notice_reads_like_a_story() -> None:
    screen = Screen()
    screen.start("train")
    for rank in (0, 1):
        screen.tell("rank-started", rank=rank, pid=1)
    screen.tell("training", step=0, steps=400, epochs=17.067, samples=1500)
    screen.tell("step", step=150, steps=400, loss=0.52)
    screen.now = 35
    screen.tell("spot-notice", step=150, rank=1)
    screen.tell("checkpoint", step=151, stall_seconds=0.1)
    screen.tell("preempted", step=151)
    screen.tell("attempt-ended", exit_code=75, step=151, steps_lost=0)
    screen.now = 48
    screen.tell("resumed", step=151, skipped=["step-000000150 is torn"])
    screen.tell("step", step=400, steps=400, loss=0.3519)
    screen.tell("finished", step=400)
    screen.tell("attempt-ended", exit_code=0, step=400, steps_lost=0)
    screen.end("train", {"step": 400, "attempts": 2}, seconds=87.6)
    begun, notice, preempted, resumed, ended = screen.lines
    assert holds(begun, "train            0.0 s", "400 steps", "1,500 samples", "17.1 times")
    assert holds(notice, "train             35 s", "spot", "rank 1", "step 150")
    assert holds(preempted, "train             35 s", "preempted", "step 151", "0 steps lost")
    assert holds(resumed, "train             48 s", "resumed", "step 151", "step-000000150 is torn")
    assert holds(ended, "train       1 min 28 s", "400 steps (17.1 epochs)", "loss 0.352", "2 attempts")


def test_a_training_of_other_data_begins_anew() -> None:
    screen = Screen()
    screen.start("train")
    screen.tell("resumed", step=0, skipped=["step-000000400 belongs to another training", "so does the next"])
    screen.tell("training", step=0, steps=400, epochs=17.067, samples=1500)
    screen.tell("step", step=400, steps=400, loss=None)
    screen.end("train", {"step": 400, "attempts": 1}, seconds=5.0)
    anew, begun, ended = screen.lines
    assert holds(begun, "train            0.0 s", "400 steps", "1,500 samples", "17.1 times")
    assert holds(anew, "train            0.0 s", "begun anew", "step-000000400", "another training", "1 older")
    assert holds(ended, "train            5.0 s", "400 steps", "17.1 epochs")


def test_a_crash_says_what_it_cost() -> None:
    screen = Screen()
    screen.start("train")
    screen.tell("attempt-ended", exit_code=137, step=1200, steps_lost=1)
    (line,) = screen.lines
    assert holds(line, "train            0.0 s", "exit code 137", "step 1,200", "1 step lost")


def test_what_nobody_expected_is_told_all_the_same() -> None:
    screen = Screen()
    screen.start("index")
    screen.tell("shard-lost", by="index", shard="a", storage="b")
    (line,) = screen.lines
    assert holds(line, "index            0.0 s", "shard-lost", "shard a", "storage b")


def test_the_first_step_that_fails_leaves_its_reason_to_the_end_of_the_run() -> None:
    screen = Screen()
    for step in ("caption", "latents"):
        screen.end(step, None, status="failed", error=f"{step} has no images", exit_code=65)
    assert screen.lines == ["caption          2.0 s  failed", "latents          2.0 s  failed: latents has no images"]


def test_a_step_that_fails_says_why_on_one_line_that_shows_what_it_holds() -> None:
    screen = Screen()
    screen.end("index", None, status="failed", error="first", exit_code=65)
    screen.start("caption", "000")
    error = "cannot read 'a\x1b[31m\nb\u202e'" + 100 * "x"
    screen.end("caption", None, group="000", status="failed", error=error, exit_code=65)
    text = "caption 000      2.0 s  failed: cannot read 'a\\x1b[31m\\nb\\u202e'"
    assert screen.lines[1:] == [text + 100 * "x"]

    terminal = Screen(terminal=True)
    terminal.end("index", None, status="failed", error="first", exit_code=65)
    terminal.end("caption", None, group="000", status="failed", error=error, exit_code=65)
    assert terminal.lines[1].startswith(text)
    assert len(terminal.lines[1]) == 80


def test_a_step_that_was_stopped_did_not_fail() -> None:
    screen = Screen()
    screen.start("train")
    screen.end("train", None, status="failed", error="asked to stop", exit_code=75)
    (line,) = screen.lines
    assert holds(line, "train            2.0 s", "stopped", "asked to stop")
    assert "failed" not in line


def test_a_file_gets_a_line_a_minute_and_no_bars() -> None:
    screen = Screen()
    with screen.display:
        screen.start("latents", "000")
        for second in range(1, 200):
            screen.now = float(second)
            screen.tell("progress", by="latents 000", what="images encoded", done=second, total=1000)
    assert len(screen.lines) == 3
    lefts = ("15 min 40 s left", "14 min 40 s left", "13 min 40 s left")
    for minute, (line, left) in enumerate(zip(screen.lines, lefts, strict=True), start=1):
        assert holds(line, f"latents 000      {minute} min", f"{60 * minute}/1,000 images encoded, 1/s, {left}")


def bar_text(screen: Screen) -> str:
    """Return what stands behind the bar that was drawn last."""
    return re.split(r"[━╸╺]+ +", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", screen.lines[-1]))[-1].strip()


def test_a_bar_says_how_fast_it_goes_and_how_long_it_takes() -> None:
    screen = Screen(terminal=True)
    with screen.display:
        screen.start("train")
        texts = []
        # Training goes on at step 100; after a crash at step 300, it starts again at 250.
        for now, step in ((10, 100), (12, 120), (30, 300), (90, 250), (190, 260)):
            if now == 90:
                screen.tell("attempt-ended", exit_code=137, step=250, steps_lost=50)
            screen.now = float(now)
            screen.tell("step", step=step, steps=400, loss=0.5)
            screen.display._bars.refresh()
            texts.append(bar_text(screen))
    assert texts == [
        "100/400 steps, loss 0.500",
        "120/400 steps, loss 0.500",
        "300/400 steps, 10/s, 10 s left, loss 0.500",
        "250/400 steps, loss 0.500",
        "260/400 steps, 0.1/s, 23 min 20 s left",
    ]


def test_a_terminal_shows_bars_that_fit_and_vanish() -> None:
    screen = Screen(terminal=True)
    with screen.display:
        screen.start("latents", "000")
        screen.now = 3700.0
        what = "images encoded with a name that is far too long for what is left"
        screen.tell("progress", by="latents 000", what=what, done=512, total=905)
        screen.start("latents", "001")  # draws all bars at once
        bars = screen.lines[-2:]
        screen.end("latents", {"encoded": 905, "reused": 0, "shards": 1}, group="000")
        screen.end("latents", {"encoded": 892, "reused": 0, "shards": 1}, group="001")
    assert re.search(r"latents 000 +1 h 1 min [━╸]+ +512/905 images encoded with a na.*…$", bars[0])
    assert re.search(r"latents 001 +0.0 s ━+ starting", bars[1])
    assert all(len(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", bar)) <= 80 for bar in bars)
    ended = "".join(screen.lines[screen.lines.index(bars[1]) + 1 :])
    assert "905 encoded" in ended
    assert "512/905" not in ended


def test_the_closing_table_fits_and_says_what_counts() -> None:
    screen = Screen()
    seconds = {"train": 87.6, "latents": 10.2, "autoencoder": 10.9, "evaluate": 5.4, "ingest": 0.1, "publish": 0.04}
    screen.display.close(NUMBERS, seconds, 134.0)
    assert screen.lines == [
        "",
        "images            1,797, of which 1,797 encoded now",
        "rejected          9 (4 truncated, 3 duplicate, 1 too-small, …)",
        "training          400 steps, 1 preemption, 0 steps lost",
        "speed             450 images/s in training, goodput 64.9 %",
        "Prompt accuracy   100 % (120 images; real images: 98.3 %)",
        "Fréchet distance  0.241 (120 images; real images: 0.146)",
        "published         models/demo/936c69dd190a036c",
        "time              2 min 14 s (train 1 min 28 s, autoencoder 11 s, latents 10 s)",
    ]
    assert max(map(len, screen.lines)) <= 80


def test_the_closing_table_says_which_setting_reads_captions_that_were_cut() -> None:
    for cut, rows in ((0, 0), (12, 1)):
        screen = Screen()
        lengths = {"captions": 1797, "cut": cut, "tokens": 75}
        screen.display.close({**NUMBERS, "caption_lengths": lengths}, {}, 3.0)
        said = [text for text in screen.lines if "captions cut" in text]
        assert said == ["captions cut      12 of 1,797 at 75 tokens; latents.text_chunks reads more"][:rows]


def test_the_closing_table_of_a_run_that_measured_nothing() -> None:
    screen = Screen()
    unknown = {"metrics": {"x": metric("X", "share", None)}, "published": None, "goodput": None}
    numbers = {**NUMBERS, **unknown, "samples_per_second": None, "preemptions": 0, "rejected_by_reason": {}}
    screen.display.close({**numbers, "reason": "The model is\nworse."}, {}, 3.0)
    assert screen.lines[3:] == [
        "training          400 steps",
        "speed             not measured",
        "X                 not measured",
        "not published     The model is\\nworse.",
        "time              3.0 s",
    ]


def test_a_path_is_never_broken() -> None:
    screen = Screen(terminal=True)
    screen.display.print_line("report  " + 40 * "folder/")
    assert screen.lines == ["report  " + 40 * "folder/"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading weights: 100%",
        '{"event": "step-ended", "by": "train"',
        '{"event": "of another library"}',
        '{"event": "of another library", "by": 3}',
        '{"event":}',
        'truncated: [\'{"event": "step-ended", "by": "train"}\']',
        '{"event": "a", "by": "b"} and more',
    ],
)
def test_what_is_no_event_of_a_step_is_none(line: str) -> None:
    assert read_event(line) is None


def test_an_event_is_found_behind_kubeflows_indentation() -> None:
    event = {"event": "progress", "by": "latents 000", "what": "a\nb", "done": 1, "total": 2}
    assert read_event(f"        {json.dumps(event)}\n") == event
