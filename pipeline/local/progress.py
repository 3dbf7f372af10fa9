"""How far a pipeline has come and what ended it, read from the events of its steps (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.errors import DarkroomError, Preempted
from pipeline.messages import title
from pipeline.work import DIED, DONE

# The last line of a Python traceback.
_EXCEPTION = re.compile(r"\s*((?:\w+\.)*\w*(?:Error|Exception)\b.*)")


@dataclass
class PipelineProgress:
    """The state of a pipeline after the events so far.

    Attributes:
        running: Steps that were started and have not ended.
        error: The error of the first step that failed, with its exit code.
        failed_tasks: Kubeflow's names of the tasks that failed, the innermost first.
        last_exception: The last line that looked like the end of a traceback.
        reported: Whether the report was written.
        spans: For each step when it first began and last ended, in seconds since 1970.
    """

    running: set[str] = field(default_factory=set)
    error: DarkroomError | None = None
    failed_tasks: list[str] = field(default_factory=list)
    last_exception: str = ""
    reported: bool = False
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Record one event."""
        match event["event"]:
            case "step-started":
                self.running.add(title(event))
            case "step-ended":
                self._end(event)
            case "pipeline-failed":
                self.failed_tasks = event["tasks"]
            case "reported":
                self.reported = True

    def add_line(self, line: str) -> None:
        """Record a line that is not an event."""
        match = _EXCEPTION.fullmatch(line.rstrip())
        if match is not None:
            self.last_exception = match[1]

    def seconds(self) -> dict[str, float]:
        """Return the wall time of each step that ended, from its first group's start to its last one's end."""
        return {step: end - start for step, (start, end) in self.spans.items()}

    def failure(self, exit_code: int) -> DarkroomError | None:
        """Return what ended the pipeline, or None if all went well.

        A step that is killed reports nothing; then it is one of those still running. One that cannot even be started,
        or fails outside its own work, is named as Kubeflow names it.

        Args:
            exit_code: That of the process that ran the pipeline.
        """
        if self.error is not None or exit_code == 0:
            return self.error
        if self.running:
            return DarkroomError(f"{', '.join(sorted(self.running))}: {DIED}")
        name = self.failed_tasks[0] if self.failed_tasks else "the pipeline"
        reason = self.last_exception or "the log may tell more"
        return DarkroomError(f"{name}: it failed before it could say why; {reason}")

    def _end(self, event: Mapping[str, Any]) -> None:
        name, step = title(event), event["step"]
        self.running.discard(name)
        if event["status"] != DONE and self.error is None:
            # A step that was stopped by a signal of its own, as when a machine shuts down, has not failed.
            kind = Preempted if event["exit_code"] == Preempted.exit_code else DarkroomError
            self.error = kind(f"{name}: {event['error']}")
            self.error.exit_code = event["exit_code"]
        start, end = event["started"], event["started"] + event["seconds"]
        first, last = self.spans.get(step, (start, end))
        self.spans[step] = min(first, start), max(last, end)
