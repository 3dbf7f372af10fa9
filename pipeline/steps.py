"""Each component as a Kubeflow step: the types of its parameters, and one call into `pipeline.work`.

The bodies are shipped as source and import what they need from the image, so they stay thin and install nothing.
"""

# No postponed annotations here: the compiler reads the types of the parameters.
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Markdown, Metrics, Output

_IMAGE = "darkroom"  # replaced by `place`

step = dsl.component(base_image=_IMAGE, install_kfp_package=False)


def place(task: Any, image: str, retries: int) -> Any:
    """Say which image a step runs in and how often it is started again."""
    uncached(task).set_container_image(image)
    if retries:
        # The compiler's default limit is one hour after the first start, which would end the retries of long steps.
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="14d")
    return task


def uncached(task: Any) -> Any:
    """Keep a step out of Kubeflow's cache, which does not know whether results are still there; the steps look."""
    task.set_caching_options(False)
    return task


@step
def configure(recipe: str, workdir: str, source: str, overrides: list) -> str:
    """Resolve and check every setting, before anything is started."""
    from pipeline import work

    return work.configure(recipe, workdir, source, overrides)


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
    page: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Write the run's report, however the run ended."""
    from pipeline import work

    work.report(recipe, workdir, source, overrides, status.state, page.path, summary.path, metrics.log_metric)
