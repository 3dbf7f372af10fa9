"""Each component as a Kubeflow step: the types of its parameters, and one call into `pipeline.work`.

The bodies are shipped as source and import what they need from the image, so they stay thin and install nothing. What
a step does, and which image and machine it needs, is declared in ``components/<step>/declaration.py``.
"""

# No postponed annotations here: the compiler reads the types of the parameters.
import math
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl import HTML, Markdown, Metrics, Output

from pipeline.pod import LABELS, USER, StepPod

_IMAGE = "darkroom"  # replaced by `set_pod`
_TMP, _SHM = "/tmp", "/dev/shm"  # noqa: S108 - inside the pod, where they are volumes of its own

step = dsl.component(base_image=_IMAGE, install_kfp_package=False)


def set_pod(task: Any, pod: StepPod) -> Any:
    """Set which pod a step runs in and how often it is started again; on this machine only the image has a meaning."""
    uncached(task).set_container_image(pod.image)
    if pod.retries:
        # The compiler's default limit is one hour after the first start, which would end the retries of long steps.
        task.set_retry(pod.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="365d")
    if pod.cpus is not None:
        _set_resources(task, pod, pod.cpus)
        _set_scheduling(task, pod)
        _set_environment(task, pod)
    return task


def _set_resources(task: Any, pod: StepPod, cpus: float) -> None:
    """Set CPU, memory, GPUs and disk: limits equal to requests, but no limit on CPU time."""
    task.set_cpu_request(f"{math.ceil(cpus * 1000)}m")
    task.set_memory_request(f"{pod.memory_mib}Mi").set_memory_limit(f"{pod.memory_mib}Mi")
    if pod.gpus:
        task.set_accelerator_type(pod.gpu_resource).set_accelerator_limit(pod.gpus)
    kubernetes.empty_dir_mount(task, "tmp", _TMP, size_limit=f"{pod.tmp_mib}Mi")
    if pod.shared_memory_mib:
        kubernetes.empty_dir_mount(task, "shm", _SHM, medium="Memory", size_limit=f"{pod.shared_memory_mib}Mi")


def _set_scheduling(task: Any, pod: StepPod) -> None:
    """Set which nodes may run the step, as which user and for how long."""
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


def _set_environment(task: Any, pod: StepPod) -> None:
    """Set how the image is pulled, environment variables and mounted files; secrets only by their names."""
    if pod.pull_policy is not None:
        kubernetes.set_image_pull_policy(task, pod.pull_policy)
    if pod.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pod.pull_secrets))
    for name, value in pod.env.items():
        task.set_env_variable(name, value)
    for secret, keys in pod.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys})
    for name, folder in pod.secret_folders.items():
        kubernetes.use_secret_as_volume(task, name, folder)
    for name, folder in pod.config_maps.items():
        kubernetes.use_config_map_as_volume(task, name, folder)


def uncached(task: Any) -> Any:
    """Keep a step out of Kubeflow's cache, which does not know whether results are still there; the steps look."""
    task.set_caching_options(False)
    return task


@step
def configure(recipe: str, workdir: str, source: str, overrides: list, cluster: list, pods: dict) -> str:
    """Resolve and check every setting, before anything is started."""
    from pipeline import work

    return work.configure(recipe, workdir, source, overrides, cluster, pods)


@step
def ingest(config: str) -> list:
    """List the images and divide them into groups; returns the names of the lanes that share the groups."""
    from pipeline import work

    work.run_step("ingest", config)
    return work.lanes(config)


@step
def caption(config: str, lane: str) -> str:
    """Give the images of a lane's groups captions; returns the lane's name."""
    from pipeline import work

    work.run_step("caption", config, lane=lane)
    return lane


@step
def clean(config: str, lanes: list, page: Output[HTML], summary: Output[Markdown]) -> list:
    """Reject what the filters and near duplicates say, and write the data report; returns the lanes."""
    from pipeline import work

    pages = {"report": page.path, "summary": summary.path}
    work.run_step("clean", config, pages=pages)
    return lanes


@step
def autoencoder(config: str, lanes: list) -> NamedTuple("Base", [("base_model", str), ("encoding_key", str)]):
    """Provide the model to start from; train an autoencoder if none is given."""
    from pipeline import work

    base = work.run_step("autoencoder", config)
    return base["base_model"], base["encoding_key"]


@step
def latents(config: str, encoding_key: str, base_model: str, lane: str) -> str:
    """Encode the images and captions of a lane's groups into shards; returns the lane's name."""
    from pipeline import work

    work.run_step("latents", config, {"encoding_key": encoding_key, "base_model": base_model}, lane)
    return lane


@step
def index(config: str, encoding_key: str, lanes: list) -> str:
    """Commit the dataset that all groups make together; returns its digest."""
    from pipeline import work

    return str(work.run_step("index", config, {"encoding_key": encoding_key})["dataset_digest"])


@step
def train(config: str, encoding_key: str, base_model: str, dataset: str) -> NamedTuple(
    "Trained", [("step", int), ("dataset", str)]
):
    """Train the UNet, and start it again after preemptions; returns the last step and the version trained on."""
    from pipeline import work

    inputs = {"encoding_key": encoding_key, "base_model": base_model, "dataset": dataset}
    trained = work.run_step("train", config, inputs)
    return int(trained["step"]), str(trained["dataset_digest"])


@step
def evaluate(
    config: str, encoding_key: str, base_model: str, dataset: str, trained: int, metrics: Output[Metrics]
) -> bool:
    """Draw and measure; returns whether the model beats the published one."""
    from pipeline import work

    inputs = {"encoding_key": encoding_key, "base_model": base_model, "dataset": dataset}
    return bool(work.run_step("evaluate", config, inputs, log_metric=metrics.log_metric)["better"])


@step
def publish(config: str, base_model: str) -> str:
    """Publish the model as a diffusers folder, and make it the champion."""
    from pipeline import work

    return str(work.run_step("publish", config, {"base_model": base_model})["published"])


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
    from pipeline.config import resolve_parameters

    settings = resolve_parameters(recipe, source, overrides, cluster)
    work.report(settings, workdir, status.state, page.path, summary.path, metrics.log_metric)
