"""Darkroom on one page: from a folder or bucket of images to a trained, measured, published model."""

# No postponed annotations here: the compiler reads the types of the parameters.
from collections.abc import Sequence
from typing import Any

from kfp import dsl

from pipeline import steps
from pipeline.config import NO_OVERRIDES, SOURCE_OF_RECIPE
from pipeline.pod import PodOf

PURPOSE = "Train Stable Diffusion on a folder or bucket of images and publish it."


def build(pod_of: PodOf, cluster: Sequence[str] = (), description: str = PURPOSE, pods: Any = None) -> Any:
    """Return the pipeline.

    Args:
        pod_of: Returns for a step's name which pod it runs in and how often it is started again, to continue.
        cluster: Settings of the cluster, which win over the recipe's; a run's overrides win over them.
        description: What the dashboard shows of it.
        pods: What `pod_of` gives each step, as `pipeline.launch.checks.demands` writes it down; None on one machine.
    """

    def run(task: Any) -> Any:
        return steps.set_pod(task, pod_of(task.component_spec.name))

    # Pipelines of their own: kfp.local fills what a loop takes from other steps with the loop's item.
    @dsl.pipeline(name="label", description="Give lanes of images captions, and reject what must not be trained on.")
    def label(config: str, lanes: list) -> list:
        with dsl.ParallelFor(lanes) as lane:
            captioned = run(steps.caption(config=config, lane=lane)).output
        cleaned: list = run(steps.clean(config=config, lanes=dsl.Collected(captioned))).outputs["Output"]
        return cleaned

    @dsl.pipeline(name="encode", description="Turn lanes of captioned images into one dataset of latents.")
    def encode(config: str, lanes: list, encoding_key: str, base_model: str) -> str:
        with dsl.ParallelFor(lanes) as lane:
            latents = run(
                steps.latents(config=config, encoding_key=encoding_key, base_model=base_model, lane=lane)
            ).output
        dataset: str = run(steps.index(config=config, encoding_key=encoding_key, lanes=dsl.Collected(latents))).output
        return dataset

    @dsl.pipeline(name="darkroom", description=description)
    def darkroom(
        recipe: str,
        workdir: str,
        source: str = SOURCE_OF_RECIPE,
        overrides: list = NO_OVERRIDES,
    ) -> None:
        """Caption, encode, train, evaluate and publish; continue where an equal run stopped.

        Args:
            recipe: Name of a recipe, which holds the defaults of all settings, or a recipe's own text.
            workdir: Folder or s3://bucket/prefix that holds everything the run writes.
            source: Folder or s3://bucket/prefix with the images; "recipe": the recipe's own.
            overrides: Settings that differ from the recipe's, each as "section.key=value"; ["none"]: none does.
        """
        request = {"recipe": recipe, "workdir": workdir, "source": source, "overrides": overrides}
        request |= {"cluster": list(cluster)}  # no parameter: it belongs to the version, and nobody types it
        with dsl.ExitHandler(run(steps.report(**request))):
            config = run(steps.configure(**request, pods=pods or {})).output
            images = run(steps.ingest(config=config)).output
            lanes = steps.uncached(label(config=config, lanes=images)).output
            base = run(steps.autoencoder(config=config, lanes=lanes)).outputs
            model = {"config": config, "encoding_key": base["encoding_key"], "base_model": base["base_model"]}
            dataset = steps.uncached(encode(**model, lanes=lanes)).output
            trained = run(steps.train(**model, dataset=dataset)).outputs
            measured = run(steps.evaluate(**model, dataset=trained["dataset"], trained=trained["step"]))
            with dsl.If(measured.outputs["Output"] == True):  # noqa: E712 - the compiler needs a comparison
                run(steps.publish(config=config, base_model=base["base_model"]))

    return darkroom
