"""What a run on a cluster tells: of its training from its own records, of each step from its pods.

The records need no rights on the cluster and outlive the pods; the pods' words need `pods` and `pods/log` there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from components.errors import ConfigError, DarkroomError
from components.storage.base import Storage
from pipeline.messages import event_line, line

Say = Callable[[str], None]

_POLL_SECONDS = 5.0
_TIMEOUT = 30.0
_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
_CONTAINER = "main"
_EVENTS, _METRICS = "events.jsonl", "metrics.jsonl"


def show(
    run_id: str,
    place: Storage | None,
    step: str,
    lines: int,
    namespace: str,
    follow: bool,
    ended: Callable[[], bool],
    say: Say,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show the last of what a step tells, and where asked to, what it tells from now on.

    Args:
        run_id: Kubeflow's id of the run.
        place: The run's folder; None where it cannot be read.
        step: The step.
        lines: How many last lines.
        namespace: Where its pods are.
        follow: Go on until the run has ended.
        ended: Tells whether it has.
        say: Told each line.
        sleep: Waits so many seconds.

    Raises:
        ConfigError: Where neither records nor pods can be read.
    """
    if step == "train" and place is not None:
        _follow(place, lines, follow, ended, say, sleep)
        return
    if place is not None:
        for told in _records(place, step):
            say(told)
    try:
        for told in _pods(run_id, step, lines, namespace):
            say(told)
    except ConfigError as error:
        if place is None:
            raise
        say(f"the pods' own words cannot be read: {error}")


def _follow(
    place: Storage, lines: int, follow: bool, ended: Callable[[], bool], say: Say, sleep: Callable[[float], object]
) -> None:
    """Show what training tells: its events and its steps, each as a line."""
    told = Journal(place)
    for text in told.read()[-max(0, lines) :] if lines else []:
        say(text)
    while follow:
        over = ended()  # asked before the last look, which so misses nothing
        for text in told.read():
            say(text)
        if over:
            return
        sleep(_POLL_SECONDS)


class Journal:
    """Reads on in a run's events and metrics from where it was; a line that is not whole yet waits.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Storage) -> None:
        self._run = run
        self._at = {_EVENTS: 0, _METRICS: 0}

    def read(self) -> list[str]:
        """Return what came since the last time, events before steps."""
        return [text for name in self._at for found in self._new(name) if (text := _shown(found)) is not None]

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
                found = json.loads(text)
            except ValueError:
                continue  # torn when its writer was killed
            if isinstance(found, dict):
                yield found


def _shown(found: Mapping[str, Any]) -> str | None:
    if "event" in found:
        try:
            return event_line(found)
        except (KeyError, TypeError):
            return line(json.dumps(found))
    told = [f"step {found.get('step')}"]
    told += [f"{name} {found[name]:.5g}" for name in ("loss", "lr", "samples_per_second") if _is_number(found, name)]
    return line(", ".join(told).replace("_", " "))


def _is_number(found: Mapping[str, Any], name: str) -> bool:
    return isinstance(found.get(name), int | float)


def _records(place: Storage, step: str) -> Iterator[str]:
    """Yield what the records of a step say; of several lanes, each."""
    for entry in place.list("steps"):
        name = entry.key.removeprefix("steps/").removesuffix(".json")
        if re.fullmatch(rf"{re.escape(step)}(-\w+)?", name):
            try:
                record = place.read_json(entry.key)
            except DarkroomError as error:
                yield line(f"{name}: {error}")
                continue
            yield line(f"{name}: {record.get('status')} {record.get('error') or record.get('result') or ''}")


def _pods(run_id: str, step: str, lines: int, namespace: str) -> Iterator[str]:
    """Yield the last lines of each pod of a step.

    Raises:
        ConfigError: Where the cluster cannot be asked.
    """
    from kubernetes import client

    from pipeline.launch.api import AWAY, connect

    api = connect(namespace, 0.0).core
    try:
        found = api.list_namespaced_pod(namespace, label_selector=f"{_RUN_LABEL}={run_id}", _request_timeout=_TIMEOUT)
    except (client.ApiException, *AWAY) as error:
        raise ConfigError(line(f"pods of namespace {namespace}: {str(error)[:200]}")) from None
    for pod in found.items:
        if _is_of(pod, step):
            name = pod.metadata.name
            yield f"--- {name}"
            try:
                log = api.read_namespaced_pod_log(
                    name, namespace, container=_CONTAINER, tail_lines=lines, _request_timeout=_TIMEOUT
                )
                yield from map(line, log.splitlines())
            except (client.ApiException, *AWAY) as error:
                yield line(f"cannot be read: {str(error)[:200]}")


def _is_of(pod: Any, step: str) -> bool:
    """Tell whether a pod is a step's, not a driver's: Argo writes the way to it through the graph on the pod."""
    way = str((pod.metadata.annotations or {}).get(_NODE_NAME, "")).split(".")
    return any(re.sub(r"\(.*", "", part) == step for part in way)
