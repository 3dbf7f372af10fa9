"""Kueue 0.19, as far as a TrainJob notices it: a job is made suspended, and admitted by a typed update.

Kueue reads the job into Go's types of Kubeflow Trainer 2.2.1, changes it, and writes the whole of it back. What those
types do not know is gone then, and so is what is empty (``omitempty``); quantities are as Go writes them. Two others
judge the result: Trainer's CRD, in which ``spec.trainer`` is immutable, and JobSet's webhook, which takes no change of
the pods of a JobSet.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.cluster.api_server import ApiServer, Json

QUEUE = "kueue.x-k8s.io/queue-name"
JOB_UID = "kueue.x-k8s.io/job-uid"
MANAGER = "kueue.x-k8s.io/manager"

FIELDS: Any = json.loads(Path(__file__).with_name("trainjob_fields.json").read_text("utf-8"))["spec"]
_SUFFIXES = (("", "Ki", "Mi", "Gi", "Ti", "Pi"), 1024), (("n", "u", "m", "", "k", "M", "G", "T"), 1000)


def round_trip(spec: Json) -> Json:
    """Return a TrainJob's spec as Kueue's typed client writes what it has read."""
    written: Json = _typed(spec, FIELDS)
    return written


def _typed(value: Any, fields: Any) -> Any:
    assert fields != "unused", "tests.cluster.typed_fields must list this field, too"
    if fields == "quantity":
        return canonical_quantity(str(value))
    if isinstance(fields, list):
        return [_typed(item, fields[0]) for item in value]
    if not isinstance(fields, dict):
        return value
    if "*" in fields:
        return {name: _typed(item, fields["*"]) for name, item in value.items()}
    known = {name: _typed(item, fields[name]) for name, item in value.items() if name in fields}
    return {name: item for name, item in known.items() if item or isinstance(item, bool)}


def canonical_quantity(text: str) -> str:
    """Return a whole quantity as Go's ``resource.Quantity`` writes it: with the largest suffix that fits."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert match is not None, text
    number, suffix = int(match[1]), match[2]
    suffixes, base = next(ladder for ladder in reversed(_SUFFIXES) if suffix in ladder[0])
    place = suffixes.index(suffix)
    while number and number % base == 0 and place + 1 < len(suffixes):
        number, place = number // base, place + 1
    return f"{number}{suffixes[place]}"


class Kueue:
    """Admits the jobs of queues; there is always quota."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._looked_at: set[str] = set()

    def may_start(self, name: str) -> bool:
        """Tell whether a job may have pods; the first look makes its Workload, the next ones admit it."""
        job = self._server.store.get("trainjobs", name)
        if QUEUE not in (job["metadata"].get("labels") or {}):
            return True
        uid = job["metadata"]["uid"]
        if uid not in self._looked_at:
            self._looked_at.add(uid)
            self._server.store.update("trainjobs", name, lambda item: item["spec"].update(suspend=True))
            metadata = {"name": f"trainjob-{name}-{uid[:5]}", "labels": {JOB_UID: uid}}
            self._server.store.create("workloads", {"metadata": metadata, "status": {}})
            return False
        workload = f"trainjob-{name}-{uid[:5]}"
        if not self._server.store.get("workloads", workload)["status"]:
            now = self._server.store.now()
            admitted = {"type": "Admitted", "status": "True", "lastTransitionTime": now}
            self._server.store.update(
                "workloads", workload, lambda item: item.update(status={"conditions": [admitted]})
            )
            self._admit(name, workload)
        job = self._server.store.get("trainjobs", name)
        return not job["spec"]["suspend"] and not job["spec"].get("rejected")

    def remove(self, name: str) -> None:
        """Remove the Workload of a job that was deleted."""
        for workload in self._server.store.list("workloads"):
            if workload["metadata"]["name"].startswith(f"trainjob-{name}-"):
                self._server.store.delete("workloads", workload["metadata"]["name"])

    def _admit(self, name: str, workload: str) -> None:
        stored = self._server.store.get("trainjobs", name)["spec"]
        written = round_trip(stored)
        if written["trainer"] != stored["trainer"]:
            problem = f"spec.trainer: Invalid value: {json.dumps(stored['trainer'])}: field is immutable"
            self._warn(
                "Workload", workload, "AdmissionFailed", f'TrainJob.trainer.kubeflow.org "{name}" is invalid: {problem}'
            )
            return
        patch = {
            "manager": MANAGER,
            "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [{"name": "node"}]}}},
        }
        changed = {**written, "suspend": False, "runtimePatches": [*written["runtimePatches"], patch]}
        self._server.store.update("trainjobs", name, lambda item: item.update(spec=changed))
        if written["runtimePatches"] != stored["runtimePatches"]:
            jobs = json.dumps([{"name": "node", "template": "x" * 2000}])
            problem = f"spec.replicatedJobs: Invalid value: {jobs}: field is immutable"
            denied = f'admission webhook "vjobset.kb.io" denied the request: {problem}'
            self._warn("TrainJob", name, "JobSetFailed", denied)
            self._server.store.update("trainjobs", name, lambda item: item["spec"].update(rejected=True))

    def _warn(self, kind: str, name: str, reason: str, message: str) -> None:
        """Write an event as controllers do, with at most 1,024 characters of text."""
        cut = message if len(message) <= 1024 else f"{message[:1021]}..."
        event = {"metadata": {"name": f"{name}.{reason}"}, "involvedObject": {"kind": kind, "name": name}}
        self._server.store.create("events", {**event, "type": "Warning", "reason": reason, "message": cut, "count": 1})
