"""End the trainings of a release that is uninstalled, with their state saved, and let no new ones begin.

python end_trainings.py --namespace NAMESPACE --runtime RUNTIME --binding ROLEBINDING --seconds SECONDS

A launcher that lives is asked first: it ends its training and closes the books. Then the launchers lose their rights,
or a step that Kubeflow starts again would submit the training again, and what is left of the trainings is deleted: they
save within their pods' grace period by themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

TRAINJOBS = ("trainer.kubeflow.org", "v1alpha1")
# The launcher of a job looks for this annotation (`pipeline.launch.render.WITHDRAWN`).
WITHDRAWN = "darkroom.dev/withdrawn"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
_TIMEOUT_SECONDS = 10
_POLL_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """End them all and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--namespace", "--runtime", "--binding"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args(argv)
    from kubernetes import client, config

    config.load_config()
    Trainings(client, given.namespace, given.runtime).end(given.binding, given.seconds)
    return 0


class Trainings:
    """The TrainJobs of a release: those of its runtime.

    Args:
        client: The package `kubernetes.client`.
        namespace: Where they are.
        runtime: The release's TrainingRuntime.
        sleep: Waits so many seconds.
        api: The connection; None: the client's default.
    """

    def __init__(
        self, client: Any, namespace: str, runtime: str, sleep: Callable[[float], object] = time.sleep, api: Any = None
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._runtime = runtime
        self._sleep = sleep
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._rights = client.RbacAuthorizationV1Api(api)

    def end(self, binding: str, seconds: float) -> None:
        """End all of them; ``binding`` gives the launchers their rights."""
        asked = [job["metadata"]["name"] for job in self._jobs()]
        for name in asked:
            _say(f"asking the launcher of {name} to end it")
            change = {"metadata": {"annotations": {WITHDRAWN: "true"}}}
            self._unless_gone(self._objects.patch_namespaced_custom_object, *self._place, name, change)
        self._wait(asked, seconds)
        self._unless_gone(self._rights.delete_namespaced_role_binding, binding, self._namespace)
        for job in self._jobs():
            _say(f"deleting {job['metadata']['name']}; it saves by itself")
            options = {"propagationPolicy": "Background"}
            delete = self._objects.delete_namespaced_custom_object
            self._unless_gone(delete, *self._place, job["metadata"]["name"], body=options)

    @property
    def _place(self) -> tuple[str, ...]:
        return (*TRAINJOBS, self._namespace, "trainjobs")

    def _jobs(self) -> list[dict[str, Any]]:
        listing = self._objects.list_namespaced_custom_object(*self._place, _request_timeout=_TIMEOUT_SECONDS)
        return [
            job for job in listing["items"] if job["spec"]["runtimeRef"]["name"] == self._runtime and not _is_over(job)
        ]

    def _wait(self, names: Sequence[str], seconds: float) -> None:
        """Wait until jobs and their pods are gone, but not for ever: their launchers may be gone as well."""
        while seconds > 0 and (left := [name for name in names if self._runs(name)]):
            _say(f"{len(left)} still save")
            self._sleep(min(_POLL_SECONDS, seconds))
            seconds -= _POLL_SECONDS

    def _runs(self, name: str) -> bool:
        if name in {job["metadata"]["name"] for job in self._jobs()}:
            return True
        label = f"{JOBSET_LABEL}={name}"
        answer = self._core.list_namespaced_pod(
            self._namespace, label_selector=label, _request_timeout=_TIMEOUT_SECONDS, _preload_content=False
        )
        return bool(json.loads(answer.data)["items"])

    def _unless_gone(self, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
        try:
            call(*arguments, **options, _request_timeout=_TIMEOUT_SECONDS)
        except self._client.ApiException as error:
            if error.status != 404:
                raise


def _is_over(job: dict[str, Any]) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the hook's log


if __name__ == "__main__":
    sys.exit(main())
