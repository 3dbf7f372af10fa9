"""Each component as a Kubeflow step: the types of its parameters, and one call into `pipeline.work`.

The bodies are shipped as source and import what they need from the image, so they stay thin and install nothing.
"""

# No postponed annotations here: the compiler reads the types of the parameters.
import math
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl import HTML, Markdown, Metrics, Output

from pipeline.pod import LABELS, USER, Pod

_IMAGE = "darkroom"  # replaced by `place`
_TMP, _SHM = "/tmp", "/dev/shm"  # noqa: S108 - inside the pod, where they are volumes of its own

step = dsl.component(base_image=_IMAGE, install_kfp_package=False)


def place(task: Any, pod: Pod) -> Any:
    """Say what a step asks of the cluster and how often it is started again; on this machine it asks for nothing."""
    uncached(task).set_container_image(pod.image)
    if pod.retries:
        # The compiler's default limit is one hour after the first start, which would end the retries of long steps.
        task.set_retry(pod.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="365d")
    if pod.cpus is not None:
        _ask(task, pod, pod.cpus)
        _settle(task, pod)
        _give(task, pod)
    return task


def _ask(task: Any, pod: Pod, cpus: float) -> None:
    """Ask for a machine's parts: limits equal to requests, but none on CPU time."""
    task.set_cpu_request(f"{math.ceil(cpus * 1000)}m")
    task.set_memory_request(f"{pod.memory_mib}Mi").set_memory_limit(f"{pod.memory_mib}Mi")
    if pod.gpus:
        task.set_accelerator_type(pod.gpu_resource).set_accelerator_limit(pod.gpus)
    kubernetes.empty_dir_mount(task, "tmp", _TMP, size_limit=f"{pod.tmp_mib}Mi")
    if pod.shared_memory_mib:
        kubernetes.empty_dir_mount(task, "shm", _SHM, medium="Memory", size_limit=f"{pod.shared_memory_mib}Mi")


def _settle(task: Any, pod: Pod) -> None:
    """Say which machines will do, who runs there and for how long."""
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    kubernetes.add_toleration_json(task, [dict(toleration) for toleration in pod.tolerations])
    if pod.node_affinity is not None:
        kubernetes.add_node_affinity_json(task, dict(pod.node_affinity))
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    if pod.seconds:
        kubernetes.set_timeout(task, pod.seconds)


def _give(task: Any, pod: Pod) -> None:
    """Give a step its image's door, its variables and its files; secrets only by their names."""
    if pod.pull_policy is not None:
        kubernetes.set_image_pull_policy(task, pod.pull_policy)
    if pod.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pod.pull_secrets))
    for name, value in pod.env.items():
        task.set_env_variable(name, value)
    for secret, keys in pod.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys})
    for name, folder in pod.config_maps.items():
        kubernetes.use_config_map_as_volume(task, name, folder)


def uncached(task: Any) -> Any:
    """Keep a step out of Kubeflow's cache, which does not know whether results are still there; the steps look."""
    task.set_caching_options(False)
    return task


@step
def configure(recipe: str, workdir: str, source: str, overrides: list, cluster: list) -> str:
    """Resolve and check every setting, before anything is started."""
    from pipeline import work

    return work.configure(recipe, workdir, source, [*cluster, *overrides])


@step
def ingest(config: str) -> list:
    """List the images and divide them into groups; returns the names of the lanes that share the groups."""
    from pipeline import work

    return work.ingest(config)


@step
def autoencoder(config: str, lanes: list) -> NamedTuple("Base", [("base_model", str), ("encoding_key", str)]):
    """Provide the model to start from; train an autoencoder where there is none."""
    from pipeline import work

    return work.autoencoder(config)


@step
def caption(config: str, encoding_key: str, lane: str) -> str:
    """Look at each image of a lane's groups and say what it shows; returns the lane's name."""
    from pipeline import work

    return work.caption(config, encoding_key, lane)


@step
def clean(config: str, encoding_key: str, lanes: list, page: Output[HTML], summary: Output[Markdown]) -> list:
    """Leave out what the filters and near duplicates tell to, and write the data report; returns the lanes."""
    from pipeline import work

    return work.clean(config, encoding_key, lanes, page.path, summary.path)


@step
def latents(config: str, encoding_key: str, base_model: str, lane: str) -> str:
    """Encode the images and captions of a lane's groups into shards; returns the lane's name."""
    from pipeline import work

    return work.latents(config, encoding_key, base_model, lane)


@step
def index(config: str, encoding_key: str, lanes: list) -> str:
    """Commit the dataset that all groups make together; returns its digest."""
    from pipeline import work

    return work.index(config, encoding_key)


@step
def train(config: str, encoding_key: str, base_model: str, dataset: str) -> int:
    """Train the UNet, and start it again after preemptions; returns the last optimizer step."""
    from pipeline import work

    return work.train(config, encoding_key, base_model, dataset)


@step
def evaluate(config: str, encoding_key: str, base_model: str, trained: int, metrics: Output[Metrics]) -> bool:
    """Draw and measure; returns whether the model beats the published one."""
    from pipeline import work

    return work.evaluate(config, encoding_key, base_model, metrics.log_metric)


@step
def publish(config: str, base_model: str) -> str:
    """Publish the model as a diffusers folder, and make it the champion."""
    from pipeline import work

    return work.publish(config, base_model)


@step
def report(
    recipe: str,
    workdir: str,
    source: str,
    overrides: list,
    cluster: list,
    page: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Write the run's report, however the run ended."""
    from pipeline import work

    settings = [*cluster, *overrides]
    work.report(recipe, workdir, source, settings, status.state, page.path, summary.path, metrics.log_metric)
