"""Kubeflow Trainer, JobSet, Job, the scheduler and the kubelets in one thread, as far as a launcher can see them.

What a gang does is scripted, one `Life` after the other. Its training is played: events, metrics and committed
checkpoints appear in the run's folder as the trainer would write them. Semantics: Trainer v2.3 (one JobSet of the job's
name, conditions copied from it), JobSet v0.12 (all pods of a start carry ``restart-attempt``; a failed gang is deleted
and made anew), Jobs (pods keep their status until they are deleted).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from components.digests import canonical_json, sha256
from components.model import checkpoints
from components.storage.base import Storage
from pipeline.launch.pods import INDEX_LABEL, JOBSET_LABEL, RESTART_LABEL
from pipeline.launch.policy import fate
from tests.cluster.api_server import ApiServer, Json, Refusal, stamp

TICK_SECONDS = 0.004
RESTART_TICKS = 20  # a cluster takes seconds to make pods anew


@dataclass
class Life:
    """What one gang does.

    Attributes:
        steps: Optimizer steps that it trains, one per tick.
        codes: Exit code of each pod, repeated for all that are left; None: it runs until it is deleted.
        taken: Whether its first pod's machine is taken away.
        scheduled: How many pods get machines.
        saves: Whether it saves before it ends.
        stuck: What its containers wait for instead of running.
        said: The last words of its first pod.
    """

    steps: int = 5
    codes: tuple[int, ...] | None = (0,)
    taken: bool = False
    scheduled: int = 99
    saves: bool = True
    stuck: str | None = None
    said: str = ""


@dataclass
class _Gang:
    job: str
    life: Life
    restart: int
    pods: list[str]
    step: int
    state: str = "pending"
    until: int = 0
    rests: int = 0  # ticks that it does nothing
    leaving: bool = False


@dataclass
class Operators:
    """Lives by a script; after its end each gang trains to the last step.

    Args:
        server: Where the objects are.
        run: The run's folder.
        steps: The last step.
        script: What gangs do, in this order.
        max_restarts: JobSet's, for those that count.
    """

    server: ApiServer
    run: Storage
    steps: int
    script: list[Life] = field(default_factory=list)
    max_restarts: int = 3
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    most: int = 0  # gangs that had processes at once
    lives: int = 0
    jobs: list[Json] = field(default_factory=list)  # every job that was ever made
    counted: int = 0
    _gangs: dict[str, _Gang] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Operators:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def gangs(self) -> list[_Gang]:
        return [gang for gang in self._gangs.values() if gang.state != "gone"]

    def on(self, state: str, act: Callable[[], None]) -> None:
        """Act once, when a gang comes to a state: pending, pulling, running, ended; or ``deleted`` for a job."""
        self.hooks[state] = act

    def _work(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            store = self.server.store
            jobs = {job["metadata"]["name"]: job for job in store.list("trainjobs")}
            for name, job in jobs.items():
                if name not in {known["metadata"]["name"] for known in self.jobs}:
                    self.jobs.append(job)
                    self.counted = 0
                    store.create("jobsets", {"metadata": {"name": name}})
                if name not in self._gangs and not _is_over(job):
                    self._gangs[name] = self._make(job, restart=0)
            for gang in list(self._gangs.values()):
                gang.leaving |= gang.job not in jobs
                self._advance(gang)
            self.most = max(self.most, sum(gang.state in ("pulling", "running") for gang in self._gangs.values()))

    def _make(self, job: Json, restart: int) -> _Gang:
        nodes, name = job["spec"]["trainer"]["numNodes"], job["metadata"]["name"]
        (patch,) = job["spec"]["runtimePatches"]
        (part,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        labels = part["template"]["spec"]["template"]["metadata"]["labels"]
        life = self.script.pop(0) if self.script else Life(steps=self.steps)
        self.lives += 1
        pods = [f"{name}-node-0-{index}-{self.lives:05}" for index in range(nodes)]
        for index, pod in enumerate(pods):
            mine = {**labels, JOBSET_LABEL: name, RESTART_LABEL: str(restart), INDEX_LABEL: str(index)}
            self.server.store.create(
                "pods", {"metadata": {"name": pod, "labels": mine}, "status": {"phase": "Pending"}}
            )
        self._reached("pending")
        return _Gang(name, life, restart, pods, checkpoints_step(self.run))

    def _advance(self, gang: _Gang) -> None:
        if gang.leaving and gang.state != "gone":
            self._leave(gang)
        elif gang.rests > 0:
            gang.rests -= 1
        elif gang.state == "pending":
            self._schedule(gang)
        elif gang.state == "pulling" and gang.life.stuck is None:
            self._start(gang)
        elif gang.state == "running":
            self._train(gang)
        elif gang.state == "ended":
            self._restart_or_end(gang)

    def _schedule(self, gang: _Gang) -> None:
        for pod in gang.pods[: gang.life.scheduled]:
            self._condition(pod, "PodScheduled")
        if gang.life.scheduled >= len(gang.pods):
            gang.state, gang.rests = "pulling", 3
            if gang.life.stuck is not None:
                reason = gang.life.stuck
                for pod in gang.pods:
                    self._container(pod, {"waiting": {"reason": reason, "message": "no such image"}})
            self._reached("pulling")

    def _start(self, gang: _Gang) -> None:
        for pod in gang.pods:
            self._container(pod, {"running": {"startedAt": stamp()}}, "Running")
        gang.state, gang.until = "running", min(self.steps, gang.step + gang.life.steps)
        self._tell("loading", ranks=len(gang.pods))
        self._tell("training", step=gang.step, ranks=len(gang.pods))
        self._reached("running")

    def _train(self, gang: _Gang) -> None:
        if gang.step < gang.until:
            gang.step += 1
            line = {"step": gang.step, "loss": 1.0 / gang.step, "samples": 10, "seconds": TICK_SECONDS}
            self.run.append_lines("metrics.jsonl", [line])
            if gang.step == gang.until and gang.life.saves:
                self._save(gang)
        elif gang.life.codes is not None:
            if gang.life.taken:
                self._condition(gang.pods[0], "DisruptionTarget")
            codes = [*gang.life.codes, *[gang.life.codes[-1]] * len(gang.pods)]
            self._finish(gang, codes)
        else:
            self._reached("holding")

    def _save(self, gang: _Gang) -> None:
        commit(self.run, gang.step)
        self._tell("checkpoint", step=gang.step, stall_seconds=0.0, trained_seconds=TICK_SECONDS * gang.life.steps)

    def _finish(self, gang: _Gang, codes: list[int]) -> None:
        for pod, code in zip(gang.pods, codes, strict=False):
            found = self.server.store.get("pods", pod)
            state = found["status"]["containerStatuses"][0]["state"]
            done = {"exitCode": code, "startedAt": state["running"]["startedAt"], "finishedAt": stamp()}
            if pod == gang.pods[0]:
                done["message"] = gang.life.said
            self._container(pod, {"terminated": done}, "Failed" if code else "Succeeded")
        gang.state, gang.rests = "ended", RESTART_TICKS
        self._reached("ended")

    def _leave(self, gang: _Gang) -> None:
        """Let go of what a deleted job made: processes save and end within their grace."""
        if gang.state == "running":
            if gang.step > 0 and gang.life.saves:
                self._save(gang)
            self._finish(gang, [75] * len(gang.pods))
            return
        for pod in gang.pods:
            with suppress(Refusal):
                self.server.store.delete("pods", pod)
        with suppress(Refusal):
            self.server.store.delete("jobsets", gang.job)
        gang.state = "gone"
        self._reached("deleted")

    def _restart_or_end(self, gang: _Gang) -> None:
        codes = gang.life.codes or (75,)
        how = fate(codes[0], gang.life.taken)
        if how == "done":
            self._end(gang, "Complete", "AllJobsCompleted")
        elif how == "fatal":
            self._end(gang, "Failed", "FailJobSetFailurePolicyAction")
        elif how == "counted" and self.counted >= self.max_restarts:
            self._end(gang, "Failed", "ReachedMaxRestarts")
        else:
            self.counted += how == "counted"
            for pod in gang.pods:
                self.server.store.delete("pods", pod)
            job = next(job for job in self.jobs if job["metadata"]["name"] == gang.job)
            self._gangs[gang.job] = self._make(job, gang.restart + 1)

    def _end(self, gang: _Gang, kind: str, reason: str) -> None:
        now = {"type": kind, "status": "True", "reason": reason, "message": f"jobset {reason}"}
        condition = {**now, "lastTransitionTime": stamp()}
        self.server.store.update("trainjobs", gang.job, lambda job: job.update(status={"conditions": [condition]}))
        gang.state = "over"

    def _condition(self, pod: str, kind: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": stamp()}
        self.server.store.update(
            "pods", pod, lambda found: found["status"].setdefault("conditions", []).append(condition)
        )

    def _container(self, pod: str, state: Json, phase: str = "Pending") -> None:
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [{"name": "node", "state": state}]}
        self.server.store.update("pods", pod, lambda found: found["status"].update(status))

    def _tell(self, event: str, **fields: Any) -> None:
        self.run.append_lines("events.jsonl", [{"time": time.time(), "event": event, **fields}])

    def _reached(self, state: str) -> None:
        act = self.hooks.pop(state, None)
        if act is not None:
            act()


def _is_over(job: Json) -> bool:
    return bool((job.get("status") or {}).get("conditions"))


def commit(run: Storage, step: int) -> None:
    """Commit a checkpoint without weights."""
    manifest = {"format": checkpoints.FORMAT, "counters": {}, "training": "played", "shapes": {}, "parts": []}
    data = canonical_json(manifest)
    run.write(f"{checkpoints.folder(step)}/manifest.json", data)
    run.write(f"{checkpoints.folder(step)}/COMMIT", sha256(data).encode())


def checkpoints_step(run: Storage) -> int:
    newest = checkpoints.newest(run)
    return newest.step if newest is not None else 0
