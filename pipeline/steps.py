"""Each component as a Kubeflow step: the types of its parameters, and one call into `pipeline.work`.

The bodies are shipped as source and import what they need from the image, so they stay thin and install nothing.
"""

# No postponed annotations here: the compiler reads the types of the parameters.
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Markdown, Metrics, Output

_IMAGE = "darkroom"  # replaced by `place`

step = dsl.component(base_image=_IMAGE, install_kfp_package=False)


def place(task: Any, image: str, retries: int, cached: bool) -> Any:
    """Say where a step runs, how often it is started again, and whether an equal call may be skipped."""
    task.set_container_image(image)
    task.set_caching_options(cached)
    if retries:
        # The compiler's default limit is one hour after the first start, which would end the retries of long steps.
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="14d")
    return task


@step
def configure(recipe: str, workdir: str, source: str, overrides: list) -> dict:  # type: ignore[type-arg]
    """Resolve and check every setting, before anything is started."""
    from pipeline import work

    return work.configure(recipe, workdir, source, overrides)


@step
def ingest(config: dict) -> NamedTuple("Images", [("source_id", str), ("groups", list), ("digest", str)]):  # type: ignore[type-arg,valid-type,misc]
    """List the images and divide them into groups."""
    from pipeline import work

    return work.ingest(config)


@step
def autoencoder(
    config: dict,  # type: ignore[type-arg]
    source_id: str,
    listing: str,
) -> NamedTuple("Base", [("base_model", str), ("encoding_key", str)]):  # type: ignore[valid-type,misc]
    """Provide the model to start from; train an autoencoder where there is none."""
    from pipeline import work

    return work.autoencoder(config, source_id)


@step
def caption(config: dict, source_id: str, encoding_key: str, group: str) -> str:  # type: ignore[type-arg]
    """Look at each image of a group and say what it shows."""
    from pipeline import work

    return work.caption(config, source_id, encoding_key, group)


@step
def latents(config: dict, source_id: str, encoding_key: str, base_model: str, group: str) -> str:  # type: ignore[type-arg]
    """Encode the images and captions of a group into shards."""
    from pipeline import work

    return work.latents(config, source_id, encoding_key, base_model, group)


@step
def index(config: dict, source_id: str, encoding_key: str, groups: list) -> str:  # type: ignore[type-arg]
    """Commit the dataset that all groups make together; returns its digest."""
    from pipeline import work

    return work.index(config, source_id, encoding_key, groups)


@step
def train(config: dict, base_model: str, encoding_key: str, dataset: str) -> int:  # type: ignore[type-arg]
    """Train the UNet, and start it again after preemptions; returns the last optimizer step."""
    from pipeline import work

    return work.train(config, base_model, encoding_key, dataset)


@step
def evaluate(
    config: dict,  # type: ignore[type-arg]
    source_id: str,
    encoding_key: str,
    base_model: str,
    step: int,
    metrics: Output[Metrics],
) -> NamedTuple("Measured", [("better", bool)]):  # type: ignore[valid-type,misc]
    """Draw and measure; tell whether the model beats the published one."""
    from pipeline import work

    return work.evaluate(config, source_id, encoding_key, base_model, step, metrics.log_metric)


@step
def publish(config: dict, base_model: str) -> str:  # type: ignore[type-arg]
    """Publish the model as a diffusers folder, and make it the champion."""
    from pipeline import work

    return work.publish(config, base_model)


@step
def report(
    recipe: str,
    workdir: str,
    source: str,
    overrides: list,  # type: ignore[type-arg]
    page: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Write the run's report, however the run ended."""
    from pipeline import work

    work.report(recipe, workdir, source, overrides, status.state, page.path, summary.path, metrics.log_metric)
