"""The pipeline as Kubeflow's intermediate representation (IR): one YAML file, named by its digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.digests import digest_file
from components.errors import ConfigError
from components.storage.files import explained
from pipeline.config import resolve
from pipeline.kubeflow.release import Deployment
from pipeline.kubeflow.step_pods import on_cluster

_NAME_DIGITS = 16


def compile_to(target: Path, deployment: Deployment, recipe: str = "", overrides: Sequence[str] = ()) -> str:
    """Write the pipeline, with a deployment's recipe, workdir and cluster as defaults of its parameters.

    Args:
        target: The file; its name ends in .yaml.
        deployment: Images, secrets and the like, and the defaults of the parameters.
        recipe: The run that decides on the steps' pods; empty: that of the deployment.
        overrides: Settings of that run which differ from the recipe's.

    Returns:
        The name of this version of the pipeline: the same bytes have the same name.

    Raises:
        ConfigError: If the recipe is wrong, or the file's name does not end in .yaml.
        StorageError: If the file cannot be written.
    """
    if target.suffix != ".yaml":
        raise ConfigError(f"--output {target}: expected a name that ends in .yaml")
    settings = resolve(recipe or deployment.recipe, [*deployment.cluster, *overrides])

    from kfp import compiler

    from pipeline.dag import build

    defaults = {"recipe": deployment.recipe, "workdir": deployment.workdir, "cluster": deployment.cluster}
    with explained(f"write {target}"):
        pipeline = build(on_cluster(settings, deployment))
        compiler.Compiler().compile(pipeline, str(target), pipeline_parameters=defaults)
    return f"ir-{digest_file(target)[:_NAME_DIGITS]}"
