"""The log of a run on a cluster: of its training from the run's own records, of each other step from its pods.

The records need no rights on the cluster and outlive the pods; the pods' logs need `pods` and `pods/log` there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.command import load_steps
from components.errors import ConfigError, DarkroomError
from components.storage.base import Storage
from pipeline.messages import PrintLine, event_line, line

_POLL_SECONDS = 5.0
_TIMEOUT = 30.0
_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
_CONTAINER = "main"
_EVENTS, _METRICS = "events.jsonl", "metrics.jsonl"


def show(
    run_id: str,
    run: Storage | None,
    step: str,
    lines: int,
    namespace: str,
    follow: bool,
    ended: Callable[[], bool],
    print_line: PrintLine,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show the last lines of a step's log, and if asked to, the lines to come.

    Args:
        run_id: Kubeflow's id of the run.
        run: The run's folder; None if it cannot be read.
        step: The step.
        lines: How many last lines.
        namespace: Namespace of its pods.
        follow: Whether to go on until the run has ended.
        ended: Returns whether it has.
        print_line: Shows a line.
        sleep: Waits so many seconds.

    Raises:
        ConfigError: If neither records nor pods can be read.
    """
    if run is not None and _is_launched(step):
        _follow(run, lines, follow, ended, print_line, sleep)
        return
    if run is not None:
        for text in _records(run, step):
            print_line(text)
    try:
        for text in _pods(run_id, step, lines, namespace):
            print_line(text)
    except ConfigError as error:
        if run is None:
            raise
        print_line(f"the pods' own logs cannot be read: {error}")


def _is_launched(step: str) -> bool:
    """Tell whether a step's pod only watches what runs elsewhere, whose log is in the run's folder."""
    steps = load_steps()
    return step in steps and steps[step].is_launched


def _follow(
    run: Storage,
    lines: int,
    follow: bool,
    ended: Callable[[], bool],
    print_line: PrintLine,
    sleep: Callable[[float], object],
) -> None:
    """Show the training's events and its steps, each as a line."""
    log = RunLog(run)
    for text in log.read()[-max(0, lines) :] if lines else []:
        print_line(text)
    while follow:
        is_last = ended()  # asked before reading, so that nothing is missed
        for text in log.read():
            print_line(text)
        if is_last:
            return
        sleep(_POLL_SECONDS)


class RunLog:
    """A run's events and metrics, read from where the last reading ended; a line that is not whole yet waits.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Storage) -> None:
        self._run = run
        self._at = {_EVENTS: 0, _METRICS: 0}

    def read(self) -> list[str]:
        """Return the lines since the last reading, events before steps."""
        return [text for name in self._at for record in self._new(name) if (text := _line_of(record)) is not None]

    def _new(self, name: str) -> Iterator[Mapping[str, Any]]:
        if not self._run.exists(name):
            return
        size = self._run.entry(name).size
        if size < self._at[name]:
            self._at[name] = 0  # begun anew
        data = self._run.read(name, start=self._at[name]) if size > self._at[name] else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._at[name] += len(whole)
        for text in whole.splitlines():
            try:
                record = json.loads(text)
            except ValueError:
                continue  # torn when its writer was killed
            if isinstance(record, dict):
                yield record


def _line_of(record: Mapping[str, Any]) -> str | None:
    if "event" in record:
        try:
            return event_line(record)
        except (KeyError, TypeError):
            return line(json.dumps(record))
    parts = [f"step {record.get('step')}"]
    parts += [f"{name} {record[name]:.5g}" for name in ("loss", "lr", "samples_per_second") if _is_number(record, name)]
    return line(", ".join(parts).replace("_", " "))


def _is_number(record: Mapping[str, Any], name: str) -> bool:
    return isinstance(record.get(name), int | float)


def _records(run: Storage, step: str) -> Iterator[str]:
    """Yield a line per record of a step, of which each lane has one."""
    for entry in run.list("steps"):
        name = entry.key.removeprefix("steps/").removesuffix(".json")
        if re.fullmatch(rf"{re.escape(step)}(-\w+)?", name):
            try:
                record = run.read_object(entry.key)
            except DarkroomError as error:
                yield line(f"{name}: {error}")
                continue
            yield line(f"{name}: {record.get('status')} {record.get('error') or record.get('result') or ''}")


def _pods(run_id: str, step: str, lines: int, namespace: str) -> Iterator[str]:
    """Yield the last lines of each pod of a step.

    Raises:
        ConfigError: If the cluster does not answer.
    """
    from kubernetes import client

    from pipeline.launch.api import CONNECTION_ERRORS, connect

    api = connect(namespace, 0.0).core
    try:
        pods = api.list_namespaced_pod(namespace, label_selector=f"{_RUN_LABEL}={run_id}", _request_timeout=_TIMEOUT)
    except (client.ApiException, *CONNECTION_ERRORS) as error:
        raise ConfigError(line(f"pods of namespace {namespace}: {str(error)[:200]}")) from None
    for pod in pods.items:
        if _is_of(pod, step):
            name = pod.metadata.name
            yield f"--- {name}"
            try:
                log = api.read_namespaced_pod_log(
                    name, namespace, container=_CONTAINER, tail_lines=lines, _request_timeout=_TIMEOUT
                )
                yield from map(line, log.splitlines())
            except (client.ApiException, *CONNECTION_ERRORS) as error:
                yield line(f"cannot be read: {str(error)[:200]}")


def _is_of(pod: Any, step: str) -> bool:
    """Tell whether a pod is a step's, not a driver's: Argo writes its path through the graph on the pod."""
    path = str((pod.metadata.annotations or {}).get(_NODE_NAME, "")).split(".")
    return any(re.sub(r"\(.*", "", part) == step for part in path)
