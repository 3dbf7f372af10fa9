"""How far a pipeline has come and what ended it, as its steps tell it. Pure: events in, answers out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.errors import DarkroomError
from pipeline.messages import title
from pipeline.work import DIED, DONE

# The last line of a Python traceback.
_RAISED = re.compile(r"\s*((?:\w+\.)*\w*(?:Error|Exception)\b.*)")


@dataclass
class Course:
    """What the steps have told so far.

    Attributes:
        running: Steps that were started and have not ended.
        error: What the first step that failed said, with its exit code.
        unexplained: Kubeflow's names of what failed, the innermost first.
        raised: The last line that looked like the end of a traceback.
        reported: Whether the report was written.
        spans: For each step when it first began and last ended, in seconds since 1970.
    """

    running: set[str] = field(default_factory=set)
    error: DarkroomError | None = None
    unexplained: list[str] = field(default_factory=list)
    raised: str = ""
    reported: bool = False
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take note of one event."""
        match event["event"]:
            case "step-started":
                self.running.add(title(event))
            case "step-ended":
                self._end(event)
            case "pipeline-failed":
                self.unexplained = event["tasks"]
            case "reported":
                self.reported = True

    def overhear(self, line: str) -> None:
        """Take note of a line that is no event."""
        found = _RAISED.fullmatch(line.rstrip())
        if found is not None:
            self.raised = found[1]

    def seconds(self) -> dict[str, float]:
        """Return the wall time of each step that ended, from its first group's start to its last one's end."""
        return {step: end - start for step, (start, end) in self.spans.items()}

    def verdict(self, exit_code: int) -> DarkroomError | None:
        """Return what ended the pipeline, or None where all went well.

        A step that is killed tells nothing; then it is one of those still running. One that cannot even be started,
        or fails besides its own work, is known by the name that Kubeflow has for it.

        Args:
            exit_code: That of the process that ran the pipeline.
        """
        if self.error is not None or exit_code == 0:
            return self.error
        if self.running:
            return DarkroomError(f"{', '.join(sorted(self.running))}: {DIED}")
        name = self.unexplained[0] if self.unexplained else "the pipeline"
        return DarkroomError(f"{name}: it failed before it could say why; {self.raised or 'the log may tell more'}")

    def _end(self, event: Mapping[str, Any]) -> None:
        name, step = title(event), event["step"]
        self.running.discard(name)
        if event["status"] != DONE and self.error is None:
            self.error = DarkroomError(f"{name}: {event['error']}")
            self.error.exit_code = event["exit_code"]
        start, end = event["started"], event["started"] + event["seconds"]
        first, last = self.spans.get(step, (start, end))
        self.spans[step] = min(first, start), max(last, end)
