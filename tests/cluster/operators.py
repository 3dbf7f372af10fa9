"""Kubeflow Trainer, JobSet, Job, the scheduler and the kubelets in one thread, as far as a launcher can observe them.

What a gang does is scripted, one `GangScript` after the other. Its training is played: events, metrics and committed
checkpoints appear in the run's folder as the trainer would write them. Semantics: Trainer v2.3 (one JobSet of the job's
name, whose conditions are copied to the job), JobSet v0.12 (all pods of one start carry ``restart-attempt``; a failed
gang is deleted and created anew), Jobs (pods keep their status until they are deleted).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from components.digests import canonical_json, sha256
from components.model import checkpoints
from components.storage.base import Storage
from pipeline.launch.books.accounting import committed_step
from pipeline.launch.pods import INDEX_LABEL, JOBSET_LABEL, RESTART_LABEL
from pipeline.launch.policy import restart_kind
from tests.cluster.api_server import ApiServer, Json, Refusal
from tests.cluster.kueue import MANAGER, Kueue

TICK_SECONDS = 0.004
RESTART_TICKS = 20  # a cluster takes seconds to create pods anew


@dataclass
class GangScript:
    """What one gang does.

    Attributes:
        steps: Optimizer steps that it trains, one per tick.
        exit_codes: Exit code of each pod, the last one of all further pods; None: it runs until it is deleted.
        node_lost: Whether its first pod loses its node.
        nodes: How many pods get a node.
        saves: Whether it saves before it ends.
        waiting_reasons: What its containers wait for instead of running; kubelets alternate between several.
        log_tail: The termination message of its first pod.
        save_ticks: How long it takes to save once its job is deleted.
    """

    steps: int = 5
    exit_codes: tuple[int, ...] | None = (0,)
    node_lost: bool = False
    nodes: int = 99
    saves: bool = True
    waiting_reasons: tuple[str, ...] = ()
    log_tail: str = ""
    save_ticks: int = 0


@dataclass
class PlayedGang:
    """The pods of one start of a job."""

    job: str
    script: GangScript
    restart: int
    pods: list[str]
    step: int
    state: str = "pending"
    last_step: int = 0
    idle_ticks: int = 0
    is_deleted: bool = False
    waits: int = 0
    started_at: float = 0.0
    saving_ticks: int = 0

    def finish(self, last_step: int) -> None:
        """Train to the last step after all, and end."""
        self.script, self.last_step = GangScript(steps=last_step), last_step


@dataclass
class Operators:
    """Run gangs by their scripts; after the last script each gang trains to the last step.

    Args:
        server: Where the objects are.
        run: The run's folder.
        steps: The last step.
        scripts: What the gangs do, in this order.
        max_restarts: JobSet's limit of restarts that count.
    """

    server: ApiServer
    run: Storage
    steps: int
    scripts: list[GangScript] = field(default_factory=list)
    max_restarts: int = 3
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    max_running: int = 0  # most gangs that had processes at the same time
    gangs_created: int = 0
    jobs: list[Json] = field(default_factory=list)  # every job that was ever created
    counted_restarts: int = 0
    _gangs: dict[str, PlayedGang] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._kueue = Kueue(self.server)

    def __enter__(self) -> Operators:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def gangs(self) -> list[PlayedGang]:
        return [gang for gang in self._gangs.values() if gang.state != "gone"]

    def on(self, state: str, act: Callable[[], None]) -> None:
        """Act once, when a gang enters a state: pending, pulling, running, holding, ended; or its job is deleted."""
        self.hooks[state] = act

    def _work(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            store = self.server.store
            jobs = {job["metadata"]["name"]: job for job in store.list("trainjobs")}
            for name, job in jobs.items():
                if name not in {earlier["metadata"]["name"] for earlier in self.jobs}:
                    self.jobs.append(job)
                    self.counted_restarts = 0
                    store.create("jobsets", {"metadata": {"name": name}})
                if name not in self._gangs and not _is_over(job) and self._may_start(name):
                    self._gangs[name] = self._create_gang(job, restart=0)
            for name in {job["metadata"]["name"] for job in self.jobs} - jobs.keys():
                self._kueue.remove(name)
                if name not in self._gangs:
                    with suppress(Refusal):
                        store.delete("jobsets", name)
            for gang in list(self._gangs.values()):
                gang.is_deleted |= gang.job not in jobs
                self._advance(gang)
            running = sum(gang.state in ("pulling", "running") for gang in self._gangs.values())
            self.max_running = max(self.max_running, running)

    def _may_start(self, name: str) -> bool:
        try:
            return self._kueue.may_start(name)
        except Refusal:  # it was deleted meanwhile
            return False

    def _create_gang(self, job: Json, restart: int) -> PlayedGang:
        nodes, name = job["spec"]["trainer"]["numNodes"], job["metadata"]["name"]
        (patch,) = (patch for patch in job["spec"]["runtimePatches"] if patch["manager"] != MANAGER)
        (replicated_job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        labels = replicated_job["template"]["spec"]["template"]["metadata"]["labels"]
        script = self.scripts.pop(0) if self.scripts else GangScript(steps=self.steps)
        self.gangs_created += 1
        pods = [f"{name}-node-0-{index}-{self.gangs_created:05}" for index in range(nodes)]
        for index, pod in enumerate(pods):
            pod_labels = {**labels, JOBSET_LABEL: name, RESTART_LABEL: str(restart), INDEX_LABEL: str(index)}
            metadata = {"name": pod, "labels": pod_labels}
            self.server.store.create("pods", {"metadata": metadata, "status": {"phase": "Pending"}})
        self._enter("pending")
        return PlayedGang(name, script, restart, pods, committed_step(self.run))

    def _advance(self, gang: PlayedGang) -> None:
        if gang.is_deleted and gang.state != "gone":
            self._terminate(gang)
        elif gang.idle_ticks > 0:
            gang.idle_ticks -= 1
        elif gang.state == "pending":
            self._schedule(gang)
        elif gang.state == "pulling" and gang.script.waiting_reasons:
            self._wait(gang)
        elif gang.state == "pulling":
            self._start(gang)
        elif gang.state == "running":
            self._train(gang)
        elif gang.state == "ended":
            self._restart_or_end(gang)

    def _schedule(self, gang: PlayedGang) -> None:
        for pod in gang.pods[: gang.script.nodes]:
            self._add_condition(pod, "PodScheduled")
        if gang.script.nodes >= len(gang.pods):
            gang.state, gang.idle_ticks = "pulling", 3
            if gang.script.waiting_reasons:
                self._wait(gang)
            self._enter("pulling")

    def _wait(self, gang: PlayedGang) -> None:
        """Let the containers wait, each time for the next reason."""
        reasons, gang.idle_ticks = gang.script.waiting_reasons, 5
        gang.waits += 1
        for pod in gang.pods:
            waiting = {"reason": reasons[gang.waits % len(reasons)], "message": "no such image"}
            self._set_container(pod, {"waiting": waiting})

    def _start(self, gang: PlayedGang) -> None:
        for pod in gang.pods:
            self._set_container(pod, {"running": {"startedAt": self.server.store.now()}}, "Running")
        gang.started_at = self.server.store.clock()
        gang.state, gang.last_step = "running", min(self.steps, gang.step + gang.script.steps)
        self._write_event("loading", ranks=len(gang.pods))
        self._write_event("training", step=gang.step, ranks=len(gang.pods))
        self._enter("running")

    def _train(self, gang: PlayedGang) -> None:
        if gang.step < gang.last_step:
            gang.step += 1
            line = {"step": gang.step, "loss": 1.0 / gang.step, "samples": 10, "seconds": TICK_SECONDS}
            self.run.append_lines("metrics.jsonl", [line])
            if gang.step == gang.last_step and gang.script.saves:
                self._save(gang)
        elif gang.script.exit_codes is not None:
            if gang.script.node_lost:
                self._add_condition(gang.pods[0], "DisruptionTarget")
            codes = gang.script.exit_codes
            self._end_pods(gang, [*codes, *[codes[-1]] * len(gang.pods)])
        else:
            self._enter("holding")

    def _save(self, gang: PlayedGang) -> None:
        commit_checkpoint(self.run, gang.step)
        trained_seconds = self.server.store.clock() - gang.started_at
        self._write_event("checkpoint", step=gang.step, stall_seconds=0.0, trained_seconds=trained_seconds)

    def _end_pods(self, gang: PlayedGang, exit_codes: list[int]) -> None:
        for pod, code in zip(gang.pods, exit_codes, strict=False):
            status = self.server.store.get("pods", pod)["status"]
            started_at = status["containerStatuses"][0]["state"]["running"]["startedAt"]
            terminated = {"exitCode": code, "startedAt": started_at, "finishedAt": self.server.store.now()}
            if pod == gang.pods[0]:
                terminated["message"] = gang.script.log_tail
            self._set_container(pod, {"terminated": terminated}, "Failed" if code else "Succeeded")
        gang.state, gang.idle_ticks = "ended", RESTART_TICKS
        self._enter("ended")

    def _terminate(self, gang: PlayedGang) -> None:
        """Delete what a deleted job created: its processes save and end within their grace period."""
        if gang.state == "running":
            gang.saving_ticks += 1
            if gang.saving_ticks <= gang.script.save_ticks:
                return
            if gang.step > 0 and gang.script.saves:
                self._save(gang)
            self._end_pods(gang, [75] * len(gang.pods))
            return
        for pod in gang.pods:
            with suppress(Refusal):
                self.server.store.delete("pods", pod)
        with suppress(Refusal):
            self.server.store.delete("jobsets", gang.job)
        gang.state = "gone"
        self._enter("deleted")

    def _restart_or_end(self, gang: PlayedGang) -> None:
        codes = gang.script.exit_codes or (75,)
        kind = restart_kind(codes[0], gang.script.node_lost)
        if kind == "finished":
            self._end_job(gang, "Complete", "AllJobsCompleted")
        elif kind == "fatal":
            self._end_job(gang, "Failed", "FailJobSetFailurePolicyAction")
        elif kind == "counted" and self.counted_restarts >= self.max_restarts:
            self._end_job(gang, "Failed", "ReachedMaxRestarts")
        else:
            self.counted_restarts += kind == "counted"
            for pod in gang.pods:
                self.server.store.delete("pods", pod)
            job = next(job for job in self.jobs if job["metadata"]["name"] == gang.job)
            self._gangs[gang.job] = self._create_gang(job, gang.restart + 1)

    def _end_job(self, gang: PlayedGang, kind: str, reason: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": f"jobset {reason}"}
        conditions = [{**condition, "lastTransitionTime": self.server.store.now()}]
        self.server.store.update("trainjobs", gang.job, lambda job: job.update(status={"conditions": conditions}))
        gang.state = "over"

    def _add_condition(self, pod: str, kind: str) -> None:
        condition = {"type": kind, "status": "True", "lastTransitionTime": self.server.store.now()}

        def add(item: Json) -> None:
            item["status"].setdefault("conditions", []).append(condition)

        self.server.store.update("pods", pod, add)

    def _set_container(self, pod: str, state: Json, phase: str = "Pending") -> None:
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [{"name": "node", "state": state}]}
        self.server.store.update("pods", pod, lambda item: item["status"].update(status))

    def _write_event(self, event: str, **fields: Any) -> None:
        self.run.append_lines("events.jsonl", [{"time": self.server.store.clock(), "event": event, **fields}])

    def _enter(self, state: str) -> None:
        act = self.hooks.pop(state, None)
        if act is not None:
            act()


def _is_over(job: Json) -> bool:
    return bool((job.get("status") or {}).get("conditions"))


def commit_checkpoint(run: Storage, step: int) -> None:
    """Commit a checkpoint without weights."""
    manifest = {"format": checkpoints.FORMAT, "counters": {}, "training": "played", "shapes": {}, "parts": []}
    data = canonical_json(manifest)
    run.write(f"{checkpoints.folder(step)}/manifest.json", data)
    run.write(f"{checkpoints.folder(step)}/COMMIT", sha256(data).encode())
