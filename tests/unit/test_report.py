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

from components.dataset import Shard, make_dataset, write_dataset
from components.progress import Progress
from components.report.__main__ import main
from components.report.config import ReportConfig
from components.report.reporting import report
from components.report.summary import markdown, metrics
from components.storage import Storage, open_storage

START = 1_763_116_335.0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = [f"a handwritten digit {word}" for word in WORDS]
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png onerror=alert(1)>&amp;"
VOID = {"meta", "link", "img", "br", "hr", "input"}
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
    run.write_lines("events.jsonl", _events())
    states = {1: {"loading": 6, "useful": 35, "saving": 0.5, "lost": 1}, 2: {"idle": 2, "loading": 5.5, "useful": 25}}
    run.write_lines(
        "ledger.jsonl",
        ({"attempt": n, "state": s, "seconds": t, "nodes": 1} for n, part in states.items() for s, t in part.items()),
    )
    moments = [25, 50, 75, 100, 150, 200, 300]
    run.write_json("samples/index.json", {"prompts": PROMPTS, "size": [32, 32], "steps": moments})
    for step in moments:
        clarity = min(1.0, (step / 240) ** 0.8)
        run.write(f"samples/step-{step:09d}.png", sheet([draw(digit, 3, clarity) for digit in range(10)], 10))
    _evaluation(run, draw)
    shard = Shard("shards/32x32/00", (32, 32), 1797, 10, "ab" * 32, tuple(range(297)))
    write_dataset(workdir.child("datasets/key0"), make_dataset("key0", {}, [shard], 5))
    reasons = {"a.jpg": "truncated", "b\n.png": "too-small", "\udcff.gif": "not-an-image", "c.png": "duplicate"}
    rejected = [{"name": name, "step": "ingest", "reason": why, "detail": "…"} for name, why in reasons.items()]
    rejected.append({"name": "e.png", "step": "caption", "reason": "too-small", "detail": "found 1×1, expected 8×8"})
    workdir.write_lines("datasets/key0/rejected.jsonl", rejected)
    return workdir


def _steps(run: Storage) -> None:
    done: list[tuple[str, str | None, float, float, dict[str, Any]]] = [
        ("ingest", None, 0, 3, {"images": 1797, "rejected": 4, "read": 1801, "source_id": "5ou4ce"}),
        ("autoencoder", None, 3, 52, {"trained": True}),
        ("caption", "000", 55, 1, {"captioned": 900, "rejected": 1}),
        ("caption", "001", 56, 1, {"captioned": 897, "rejected": 0}),
        ("latents", "000", 57, 4, {"encoded": 900, "reused": 0, "shards": 1}),
        ("latents", "001", 61, 3.5, {"encoded": 890, "reused": 7, "shards": 1}),
        ("index", None, 65, 0.4, {"images": 1797, "encoding_key": "key0"}),
        ("train", None, 66, 75, {"step": 300}),
        ("evaluate", None, 141, 30, {"better": True, "prompt_accuracy": 118 / 120}),
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
    row = {"step": step, "epoch": step // 24, "loss": loss, "lr": rate, "grad_norm": clipped, "samples": 64}
    return {**row, "seconds": 0.2 + 0.02 * (step % 7) / 7 + (0.3 if step in (1, 176) else 0)}


def _events() -> list[dict[str, Any]]:
    begin = START + 66
    return [
        {"time": begin, "event": "attempt-started", "attempt": 1, "ranks": 2},
        {"time": begin + 24, "event": "checkpoint", "step": 100, "seconds": 0.4, "stall_seconds": 0.1},
        {"time": begin + 42, "event": "spot-notice", "step": 175, "rank": 1},
        {"time": begin + 42.4, "event": "checkpoint", "step": 175, "seconds": 0.3, "stall_seconds": 0.3},
        {"time": begin + 42.4, "event": "preempted", "step": 175},
        {"time": begin + 42.5, "event": "attempt-ended", "attempt": 1, "exit_code": 75, "step": 175, "steps_lost": 5},
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
        prompts.append({"prompt": prompt, "images": 12, "correct": correct[digit], "sheet": name})
    measured = {"prompt_accuracy": 118 / 120, "judge_accuracy": 0.98, "frechet_distance": 3.214, "generated": 120}
    run.write_json(
        "evaluation/evaluation.json",
        {"prompts": prompts, "sheet_columns": 4, "size": [32, 32], "metrics": {**measured, "frechet_reference": 1.9},
         "better": True, "reason": "there was no champion before", "champion": None},
    )  # fmt: skip
