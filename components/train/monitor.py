"""What a training tells: one line of metrics per step, events, and sample images; only rank 0 speaks."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from components.progress import Progress
from components.storage import Storage
from components.train.config import TrainConfig

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Monitor:
    """Writes ``metrics.jsonl``, ``events.jsonl`` and ``samples/`` of a run, and tells its progress.

    Args:
        run: The run's folder.
        config: The training's settings.
        progress: Where events go besides the file.
        speaks: Whether this process is the one that tells; the others' calls do nothing.
    """

    def __init__(self, run: Storage, config: TrainConfig, progress: Progress, speaks: bool) -> None:
        self._run = run
        self._config = config
        self._progress = progress
        self._speaks = speaks
        self._unwritten: list[dict[str, Any]] = []

    def start(self, step: int, skipped: Sequence[str]) -> None:
        """Forget metrics beyond the step that training goes on from, and tell where it starts."""
        if not self._speaks:
            return
        kept = [line for line in self._run.read_lines(METRICS) if line["step"] <= step] if step else []
        self._run.write_lines(METRICS, kept)
        if step or skipped:
            self.event("resumed", step=step, skipped=list(skipped))

    def event(self, event: str, **fields: Any) -> None:
        """Record something that happened."""
        if self._speaks:
            self._run.append_lines(EVENTS, [{"time": time.time(), "event": event, **fields}])
            self._progress.event(event, **fields)

    def step(self, step: int, **metrics: float) -> None:
        """Record a step's metrics; they are written every ``log_every`` steps and at the end."""
        if not self._speaks:
            return
        self._unwritten.append({"step": step, **metrics})
        if step % self._config.log_every == 0 or step == self._config.steps:
            self.flush()
            self._progress.event("step", step=step, steps=self._config.steps, loss=round(metrics["loss"], 4))

    def flush(self) -> None:
        """Write the metrics that are still in memory."""
        if self._unwritten:
            self._run.append_lines(METRICS, self._unwritten)
            self._unwritten = []

    def samples(self, step: int, sheet: Image.Image, size: tuple[int, int]) -> None:
        """Keep a row of images, one per sample prompt, that the model draws at this step."""
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        self._run.write(f"samples/step-{step:09d}.png", buffer.getvalue())
        index = {"prompts": self._config.sample_prompts, "size": size, "steps": self._config.sample_steps}
        self._run.write_json("samples/index.json", index)
        self.event("samples", step=step)
