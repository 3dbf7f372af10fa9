"""Before a run or a release: whether the cluster's operators are known to work with this release of Darkroom."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from components.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.launch.checks.operators import Read, judge, needs, reader
from pipeline.messages import PrintLine, line

if TYPE_CHECKING:  # it takes a second to load
    from pipeline.kubeflow.client import Kubeflow


def check_operators(kubeflow: Kubeflow, runs: Iterable[RunConfig], context: str, warn: PrintLine) -> None:
    """Check the installed operators that runs need.

    Args:
        kubeflow: The connection to Kubeflow Pipelines.
        runs: Settings of the runs.
        context: Context of the kubeconfig; empty: the current one, or the account of this pod.
        warn: Shows what is not known, or not tested.

    Raises:
        ConfigError: If a release is installed that is known not to work, or one is missing.
    """
    needed = {setting for run in runs for setting in needs(run.launch.where, run.placement.queue)}
    findings = list(judge(_read(context) if needed else lambda _path: None, kubeflow.release(), needed))
    for finding in findings:
        if not finding.is_error:
            warn(f"warning: {line(finding.text)}")
    if errors := [line(finding.text) for finding in findings if finding.is_error]:
        raise ConfigError("\n".join(errors))


def _read(context: str) -> Read | None:
    """Return what reads the cluster's API; None if nothing says where it is."""
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_kube_config(context=context or None, client_configuration=settings)
        else:
            config.load_incluster_config(client_configuration=settings)
    except (config.ConfigException, OSError):
        return None
    settings.retries = False
    return reader(client.ApiClient(settings))
