"""The report of a fabricated run: whole, hostile, damaged and half missing."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from components.accounting.ledger import append_ledger, ledger_lines
from components.dataset.versions import Shard, make_dataset, write_dataset
from components.model.metric_results import FORMAT, Direction, MetricResult, Unit, plain_metrics
from components.progress import Progress
from components.report.__main__ import main
from components.report.config import ReportConfig
from components.report.reporting import report
from components.report.summary import markdown, metrics
from components.storage.base import Storage
from components.storage.checksums import with_checksum
from components.storage.open import open_storage

START = 1_763_116_335.0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = [f"a handwritten digit {word}" for word in WORDS]
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>&amp;"
VOID = {"meta", "link", "img", "br", "hr", "input"}
LENGTHS = {"captions": 1797, "cut": 12, "tokens": 77}
SHARD = Shard("shards/32x32/00", (32, 32), 1797, 10, "ab" * 32, tuple(range(297)))
DATASET = make_dataset("key0", {}, [SHARD], 5, caption_set="source/set0", caption_lengths=LENGTHS)
INDEXED = {"images": 1797, "encoding_key": "key0", "caption_set": "source/set0", "dataset_digest": DATASET.digest}
SVG_LEAVES = {"path", "line", "rect", "circle"}


def draw_digit(digit: int, variant: int, clarity: float) -> Image.Image:
    """Draw a 32×32 digit that gets clearer from 0 to 1."""
    image = Image.new("RGB", (32, 32), "black")
    ImageDraw.Draw(image).text((7 + variant % 4, 4 + variant % 3), str(digit), fill="white", font_size=22)
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    return Image.blend(noise, image, clarity)


def sheet(images: list[Image.Image], columns: int) -> bytes:
    whole = Image.new("RGB", (columns * 32, -(-len(images) // columns) * 32))
    for index, image in enumerate(images):
        whole.paste(image, (index % columns * 32, index // columns * 32))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def fabricate(url: str, draw: Callable[[int, int, float], Image.Image] = draw_digit) -> Storage:
    """Write a run as the steps would: preempted once after step 175, 300 of 301 steps' worth kept, published."""
    workdir = open_storage(url)
    run = workdir.child("runs/first")
    run.write_json(
        "config.json",
        {"name": "digits", "seed": 7, "ingest": {"source": "digits"}, "model": {"base": None}, "train": {"steps": 300}},
    )
    _steps(run)
    run.write_lines("metrics.jsonl", map(_metric, [*range(1, 181), *range(176, 301)]))  # 176 to 180 were done twice
    run.write_lines("validation.jsonl", ({"step": n, "loss": 0.2 + 0.8 * 0.975**n} for n in range(0, 301, 50)))
    run.write_lines("events.jsonl", _events())
    states = {1: {"loading": 6, "useful": 35, "saving": 0.5, "lost": 1}, 2: {"idle": 2, "loading": 5.5, "useful": 25}}
    for number, seconds in states.items():
        append_ledger(run, ledger_lines(number, seconds))
    moments = [25, 50, 75, 100, 150, 200, 300]
    run.write_json("samples/index.json", {"prompts": PROMPTS, "size": [32, 32], "steps": moments})
    for step in moments:
        clarity = min(1.0, (step / 240) ** 0.8)
        run.write(f"samples/step-{step:09d}.png", sheet([draw(digit, 3, clarity) for digit in range(10)], 10))
    _evaluation(run, draw)
    write_dataset(workdir.child("datasets/key0"), DATASET)
    reasons = {"a.jpg": "truncated", "b\n.png": "too-small", "\udcff.gif": "not-an-image", "c.png": "duplicate"}
    rejected = [{"name": name, "step": "ingest", "reason": why, "detail": "…"} for name, why in reasons.items()]
    rejected.append({"name": "e.png", "step": "caption", "reason": "too-small", "detail": "found 1×1, expected 8×8"})
    workdir.write_records("datasets/key0/sets/source/set0/rejected.jsonl", rejected)
    return workdir


def _steps(run: Storage) -> None:
    done: list[tuple[str, str | None, float, float, dict[str, Any]]] = [
        ("ingest", None, 0, 3, {"images": 1797, "rejected": 4, "read": 1801, "source_id": "5ou4ce"}),
        ("autoencoder", None, 3, 52, {"trained": True}),
        ("caption", "000", 55, 1, {"captioned": 900, "rejected": 1}),
        ("caption", "001", 56, 1, {"captioned": 897, "rejected": 0}),
        ("latents", "000", 57, 4, {"encoded": 900, "reused": 0, "shards": 1}),
        ("latents", "001", 61, 3.5, {"encoded": 890, "reused": 7, "shards": 1}),
        (
            "index",
            None,
            65,
            0.4,
            {**INDEXED, "captions_by": {"<b>\u202ex": 3, "sidecar": 1794}},
        ),
        ("train", None, 66, 75, {"step": 300, "dataset_digest": DATASET.digest}),
        ("evaluate", None, 141, 30, {"better": True}),
        ("publish", None, 171, 0.7, {"published": "models/digits/3f9a1c", "version": "3f9a1c"}),
    ]
    for step, group, after, seconds, result in done:
        record = {"step": step, "group": group, "status": "done", "started": START + after, "seconds": seconds}
        name = f"{step}-{group}" if group else step
        run.write_json(f"steps/{name}.json", {**record, "result": result, "error": None})


def _metric(step: int) -> dict[str, Any]:
    loss = 0.18 + 0.85 * 0.975**step + 0.05 * ((step * 7919) % 101 / 101 - 0.5)
    rate = 4e-3 * min(step / 30, (301 - step) / 270)
    clipped = 0.4 + 2.2 * 0.98**step + 0.1 * ((step * 31) % 17 / 17)
    row: dict[str, Any] = {
        "step": step,
        "epoch": step // 24,
        "loss": loss,
        "lr": rate,
        "grad_norm": clipped,
        "samples": 64,
    }
    row |= {
        "grad_norm": clipped,
        "data_wait": 0.2 / 60,
        "checkpoint_stall": 0.0,
        "samples_per_second": 300.0,
        "mfu": None,
    }
    return {**row, "seconds": 0.2 + 0.02 * (step % 7) / 7 + (0.3 if step in (1, 176) else 0)}


def _events() -> list[dict[str, Any]]:
    begin = START + 66
    return [
        {"time": begin, "event": "attempt-started", "attempt": 1, "ranks": 2},
        {"time": begin + 24, "event": "checkpoint", "step": 100, "seconds": 0.4, "stall_seconds": 0.1},
        {"time": begin + 42, "event": "spot-notice", "step": 175, "rank": 1},
        {"time": begin + 42.4, "event": "checkpoint", "step": 175, "seconds": 0.3, "stall_seconds": 0.3},
        {"time": begin + 42.4, "event": "preempted", "step": 175},
        {"time": begin + 42.5, "event": "attempt-ended", "attempt": 1, "exit_code": 75, "step": 180, "steps_lost": 5},
        {"time": begin + 44.5, "event": "attempt-started", "attempt": 2, "ranks": 2},
        {"time": begin + 49, "event": "resumed", "step": 175, "skipped": []},
        {"time": begin + 56, "event": "checkpoint", "step": 200, "seconds": 0.4, "stall_seconds": 0.1},
        {"time": begin + 74, "event": "checkpoint", "step": 300, "seconds": 0.4, "stall_seconds": 0.1},
        {"time": begin + 74.5, "event": "finished", "step": 300},
        {"time": begin + 75, "event": "attempt-ended", "attempt": 2, "exit_code": 0, "step": 300, "steps_lost": 0},
    ]


def _evaluation(run: Storage, draw: Callable[[int, int, float], Image.Image]) -> None:
    correct = [12, 12, 12, 12, 12, 12, 12, 12, 11, 11]
    prompts = []
    for digit, prompt in enumerate(PROMPTS):
        name = f"evaluation/{digit:02d}.png"
        run.write(name, sheet([draw(digit, variant, 1.0) for variant in range(12)], 4))
        values = {"prompt_accuracy": correct[digit] / 12}
        prompts.append({"prompt": prompt, "images": 12, "metrics": values, "sheet": name})
    metrics = {
        "frechet_distance": _measured("Fréchet distance", "number", "lower", 3.214, 1.9, "real training images"),
        "prompt_accuracy": _measured("Prompt accuracy", "share", "higher", 118 / 120, 0.98, "real held-out images"),
    }
    run.write_json(
        "evaluation/evaluation.json",
        {"format": FORMAT, "prompts": prompts, "sheet_columns": 4, "size": [32, 32], "metrics": plain_metrics(metrics),
         "decided_by": ["frechet_distance"], "better": True, "reason": "There is no champion yet.", "champion": None},
    )  # fmt: skip


def _measured(
    label: str, unit: Unit, direction: Direction, value: float, reference: float, reference_label: str
) -> MetricResult:
    estimator = "an estimator with a name that is long enough to be broken on a phone"
    description = "what this metric measures of the generated images"
    return MetricResult(
        label, description, unit, direction, estimator, 120, "measured", value, reference, reference_label, ""
    )


class Page(HTMLParser):
    """Fails where tags are not balanced; keeps what a browser would load and what a person would read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, f"<{tag}/> closes nothing in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> while {self.open[-3:]} are open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def check_self_contained(self) -> None:
        assert not {tag for tag, _ in self.tags} & {"script", "iframe", "object", "embed", "form", "base", "image"}
        for tag, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
                shown = re.sub(
                    r"^\.\./\.\./captions/[\w-]+/[\w-]+/report\.html$", "data:", attributes.get(name) or "data:"
                )
                assert shown.startswith("data:"), (tag, attributes)
        assert all(image["alt"] is not None for image in self.images())
        (policy,) = [a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(workdir: Storage, status: str = "SUCCEEDED", **config: Any) -> tuple[dict[str, Any], Page]:
    told = report(ReportConfig(**config), "first", status, workdir, Progress(stream=io.StringIO()))
    assert told["report"] == "runs/first/report.html"
    html = workdir.read("runs/first/report.html").decode()
    assert "@import" not in html
    assert "url(" not in html
    page = Page(html)
    page.check_self_contained()
    return workdir.read_json("runs/first/report.json"), page


def test_numbers_and_page_of_a_whole_run(tmp_path: Path) -> None:
    numbers, page = write_report(fabricate(str(tmp_path)))

    expected = {
        "run": "first", "status": "succeeded", "error": None, "images": 1797, "held_out": 297, "rejected": 5,
        "rejected_by_reason": {"too-small": 2, "truncated": 1, "not-an-image": 1, "duplicate": 1}, "generated": 120,
        "better": True, "encoded": 1790, "reused": 7, "steps": 300, "attempts": 2, "preemptions": 1,
        "steps_lost": 5, "published": "models/digits/3f9a1c", "captions_by": {"sidecar": 1794, "<b>\\u202ex": 3},
        "caption_lengths": LENGTHS,
    }  # fmt: skip
    assert {name: numbers[name] for name in expected} == expected
    values = {name: (metric["value"], metric["reference"]) for name, metric in numbers["metrics"].items()}
    assert values == {"frechet_distance": (3.214, 1.9), "prompt_accuracy": (118 / 120, 0.98)}
    assert numbers["seconds"] == pytest.approx(
        {"ingest": 3, "autoencoder": 52, "caption": 2, "latents": 7.5, "index": 0.4, "train": 75, "evaluate": 30,
         "publish": 0.7}
    )  # fmt: skip
    assert "12 of 1,797\xa0captions are longer than the 77 tokens that the text encoder reads of each" in page.text
    assert list(numbers["seconds"])[:2] == ["ingest", "autoencoder"], "steps keep their order"
    spent = {"loading": 11.5, "useful": 60, "saving": 0.5, "lost": 1, "idle": 2}
    assert {state: seconds for state, seconds in numbers["ledger"].items() if seconds} == spent
    assert numbers["data_wait_share"] == pytest.approx(1 / 60, rel=0.1)
    assert numbers["checkpoint_stall_share"] == 0
    assert numbers["mfu"] is None
    assert numbers["validation_loss"] == pytest.approx(0.2 + 0.8 * 0.975**300)
    assert numbers["goodput"] == pytest.approx(60 / 75)
    assert numbers["samples_per_second"] == pytest.approx(300 * 64 / 60), "steps that were done twice count once"
    assert numbers["wall_seconds"] == pytest.approx(171.7)
    assert numbers["config"]["seed"] == 7
    assert len(numbers["dataset_digest"]) == 64
    assert {"python", "numpy", "pillow"} <= numbers["versions"].keys()
    assert numbers["missing"] == {}

    for said in (
        "digits",
        "Published",
        "models/digits/3f9a1c",
        "98.3\xa0%",
        "11 of 12",
        "preempted at 180",
        "0 → 180",
        "175 → 300",
        "b\\n.png",
        "\\udcff.gif",
        "seed: 7",
        "2\xa0min\xa052\xa0s",
        "real held-out images: 98\xa0%",
        "1.6\xa0% waiting for data",
        "on the same images with the same noise each time; 0.2 at the end.",
        "held-out loss 0.2",
        "1,797\xa0captions",
        "3 <b>\\u202ex",
    ):
        assert said in page.text, said
    alts = [image["alt"] for image in page.images()]
    assert len(alts) == 10 + 10 * 12 + 7 * 10
    assert "after step 25: a handwritten digit zero" in alts
    assert "image 12 of: a handwritten digit nine" in alts


def test_the_page_shows_the_very_pixels_that_were_drawn(tmp_path: Path) -> None:
    workdir = fabricate(str(tmp_path))
    _, page = write_report(workdir)

    (shown,) = [image for image in page.images() if image["alt"] == "after step 300: a handwritten digit four"]
    tile = Image.open(io.BytesIO(base64.b64decode(str(shown["src"]).partition("base64,")[2]))).convert("RGB")
    drawn = Image.open(io.BytesIO(workdir.read("runs/first/samples/step-000000300.png")))
    assert tile.tobytes() == drawn.crop((4 * 32, 0, 5 * 32, 32)).convert("RGB").tobytes()


def test_caps_say_how_much_is_left_out(tmp_path: Path) -> None:
    _, page = write_report(
        fabricate(str(tmp_path)), prompts=4, images_per_prompt=5, moments=2, rejections=1, attempts=1
    )

    assert len(page.images()) == 4 + 4 * 5 + 2 * 10
    for said in ("and 7 more", "and 6\xa0more prompts", "and 4 more", "and 1\xa0earlier attempt"):
        assert said in page.text, said


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    workdir = fabricate(str(tmp_path))
    run = workdir.child("runs/first")
    rejected = [{"name": f"{HOSTILE}\u202e\x1b\x00", "step": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}]
    workdir.write_records("datasets/key0/sets/source/set0/rejected.jsonl", rejected)
    for key in ("evaluation/evaluation.json", "samples/index.json", "config.json", "steps/train.json"):
        text = json.dumps(run.read_json(key)).replace("digit", json.dumps(HOSTILE)[1:-1]).replace('"done"', '"failed"')
        run.write_json(key, json.loads(text.replace('"error": null', f'"error": {json.dumps(HOSTILE)}')))
    run.append_lines("ledger.jsonl", [with_checksum({"attempt": 1, "state": HOSTILE, "seconds": 1.0, "nodes": 1})])

    numbers, page = write_report(workdir)

    assert numbers["error"] == {"step": "train", "message": HOSTILE}
    assert page.text.count("<script>alert('x')</script>") > 20
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page.text)
    assert f"{HOSTILE}\\u202e\\x1b\\x00" in page.text
    assert "<script" not in markdown(numbers)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.json", "The configuration was not recorded: config.json does not exist."),
        ("steps", "No step was recorded: steps/ holds nothing that can be shown."),
        ("metrics.jsonl", "No optimizer step was recorded: metrics.jsonl does not exist."),
        ("events.jsonl", "No attempt was recorded: events.jsonl does not exist."),
        ("ledger.jsonl", "The training’s time was not recorded: ledger.jsonl does not exist."),
        ("samples/index.json", "No images were drawn during training: samples/index.json does not exist."),
        ("evaluation/evaluation.json", "Nothing was measured: evaluation/evaluation.json does not exist."),
        ("evaluation/00.png", "evaluation/00.png does not exist"),
        ("", "Its training did not begin."),
    ],
)
def test_what_is_missing_is_said_and_the_rest_shown(tmp_path: Path, gone: str, said: str) -> None:
    workdir = fabricate(str(tmp_path))
    whole, page = write_report(workdir)
    assert said not in page.text
    workdir.delete(f"runs/first/{gone}") if "." in gone else workdir.delete_tree(f"runs/first/{gone}".rstrip("/"))

    numbers, page = write_report(workdir, status="FAILED")

    assert said in page.text
    assert numbers.keys() == whole.keys()
    assert numbers["status"] == "failed"
    assert numbers["error"]["step"] == "the pipeline"


def test_a_failed_step_comes_first(tmp_path: Path) -> None:
    workdir = fabricate(str(tmp_path))
    run = workdir.child("runs/first")
    for step in ("evaluate", "publish"):
        run.delete(f"steps/{step}.json")
    run.delete_tree("evaluation")
    record = run.read_json("steps/train.json")
    run.write_json("steps/train.json", {**record, "status": "failed", "result": None, "error": "out of\nmemory"})

    numbers, page = write_report(workdir)

    assert numbers["status"] == "failed"
    assert numbers["published"] is None
    assert page.text.index("out of\nmemory") < page.text.index("Training attempts")
    assert "Nothing was published, since train failed." in page.text
    assert numbers["metrics"] == {}
    assert "prompt_accuracy" not in metrics(numbers)
    assert "> out of\\nmemory".replace("\\", "\\\\") in markdown(numbers)


def test_a_run_that_is_run_again_forgets_the_steps_of_the_time_before(tmp_path: Path) -> None:
    workdir = fabricate(str(tmp_path))
    run = workdir.child("runs/first")
    for step, started in (("publish", -90_000.0), ("evaluate", -90_030.0)):
        run.write_json(f"steps/{step}.json", {**run.read_json(f"steps/{step}.json"), "started": START + started})

    numbers, _ = write_report(workdir)

    assert numbers["wall_seconds"] == pytest.approx(141)
    assert {"publish", "evaluate"}.isdisjoint(numbers["seconds"])


def test_damaged_files_do_not_stop_it(tmp_path: Path) -> None:
    workdir = fabricate(str(tmp_path))
    run = workdir.child("runs/first")
    good = run.read("metrics.jsonl")
    run.write("metrics.jsonl", good[:50] + b"\n" + good + b'{"step": 301, "loss": NaN}\n{"step": -1}\n{"step": 3')
    run.write("evaluation/03.png", run.read("evaluation/03.png")[:100])
    run.write("samples/step-000000025.png", b"no picture")
    run.write("config.json", b"\xff\xfe")
    run.write("ledger.jsonl", b"[]\nnull\n")
    run.write("steps/ingest.json", b"[" * 100_000)
    workdir.write(f"datasets/key0/versions/{DATASET.digest}.json", b"{}")

    numbers, page = write_report(workdir)

    assert re.search(r" 3; line 1: ", numbers["missing"]["runs/first/metrics.jsonl"])
    assert numbers["goodput"] is None
    assert numbers["dataset_digest"] is None
    assert numbers["rejected"] == 5
    assert re.search(r"evaluation/03\.png .*PNG", page.text)
    assert len(page.images()) == 9 // 3 * 3 + 9 * 12 + 6 * 10


def test_markdown_and_metrics_tell_the_same(tmp_path: Path) -> None:
    numbers, _ = write_report(fabricate(str(tmp_path)))

    plotted = metrics(numbers)
    assert plotted["prompt_accuracy"] == pytest.approx(118 / 120)
    assert plotted["frechet_distance_reference"] == 1.9
    assert all(isinstance(value, float) for value in plotted.values())
    text = markdown(numbers)
    assert text.startswith("# digits\n\n**Published.** Fréchet distance 3.21")
    assert "98.3\xa0%" in text
    assert "| train | 1\xa0min\xa015\xa0s |" in text


def test_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(str(tmp_path))

    assert main(["--workdir", str(tmp_path), "--run", "first", "--set", "moments=3"]) == 0

    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["event"] == "done"
    assert (tmp_path / done["report"]).is_file()
    assert main(["--workdir", str(tmp_path), "--run", "first", "--set", "momets=3"]) == 78
    assert " moments?" in capsys.readouterr().err
