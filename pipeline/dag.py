"""Darkroom on one page: from a place full of images to a trained, measured, published model."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from pipeline import steps


def build(image: str, retries: int) -> Any:
    """Return the pipeline.

    Args:
        image: Container image that every step runs in, pinned by digest on a cluster.
        retries: How often a failed step is started again; each continues where it stopped.
    """

    def run(step: Any, cached: bool = False) -> Any:
        return steps.place(step, image, retries, cached)

    @dsl.pipeline(name="darkroom", description="Train Stable Diffusion on a place full of images, and publish it.")
    def darkroom(recipe: str, workdir: str, source: str = "", overrides: list = []) -> None:  # type: ignore[type-arg]  # noqa: B006
        """Caption, encode, train, evaluate and publish; continue where an equal run stopped.

        Args:
            recipe: Name of a recipe, which holds the defaults of all settings.
            workdir: Folder or s3://bucket/prefix that holds everything the run makes.
            source: Folder or s3://bucket/prefix with the images; empty leaves what the recipe says.
            overrides: Settings that differ from the recipe's, each as "section.key=value".
        """
        request = {"recipe": recipe, "workdir": workdir, "source": source, "overrides": overrides}
        with dsl.ExitHandler(run(steps.report(**request))):
            config = run(steps.configure(**request)).output
            images = run(steps.ingest(config=config))
            source_id = images.outputs["source_id"]
            base = run(steps.autoencoder(config=config, source_id=source_id, listing=images.outputs["digest"]))
            data = {"config": config, "source_id": source_id, "encoding_key": base.outputs["encoding_key"]}

            with dsl.ParallelFor(images.outputs["groups"]) as group:
                captions = run(steps.caption(**data, group=group))
                latents = run(
                    steps.latents(**data, group=captions.output, base_model=base.outputs["base_model"]),
                )
            dataset = run(steps.index(**data, groups=dsl.Collected(latents.output)))

            model = {"config": config, "base_model": base.outputs["base_model"], "dataset": dataset.output}
            trained = run(steps.train(**model, encoding_key=base.outputs["encoding_key"]))
            measured = run(
                steps.evaluate(**data, base_model=base.outputs["base_model"], step=trained.output),
            )
            with dsl.If(measured.outputs["better"] == True):  # noqa: E712 - the compiler needs a comparison
                run(steps.publish(config=config, base_model=base.outputs["base_model"]))

    return darkroom
