"""What comes to a cluster, as text to read: the pipeline as Kubeflow's intermediate representation (IR), the TrainJobs.

The pipeline is one YAML file, named by its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from components.accounting.ledger import Pool
from components.digests import digest_file
from components.errors import ConfigError
from components.storage.files import explained
from pipeline.config import resolve
from pipeline.kubeflow.release import Deployment
from pipeline.kubeflow.step_pods import on_cluster
from pipeline.launch.context import TrainerArguments
from pipeline.launch.policy import LaunchLimits
from pipeline.launch.render import render
from pipeline.placement import pod_grace, stop_seconds

_NAME_DIGITS = 16


def compile_to(target: Path, deployment: Deployment, recipe: str = "", overrides: Sequence[str] = ()) -> str:
    """Write the pipeline, with a deployment's recipe and workdir as defaults of its parameters.

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

    defaults = {"recipe": deployment.recipe, "workdir": deployment.workdir}
    with explained(f"write {target}"):
        pipeline = build(on_cluster(settings, deployment), deployment.cluster)
        compiler.Compiler().compile(pipeline, str(target), pipeline_parameters=defaults)
    return f"ir-{digest_file(target)[:_NAME_DIGITS]}"


def trainjobs(deployment: Deployment, recipe: str = "", overrides: Sequence[str] = ()) -> str:
    """Return the TrainJobs that a run submits, as YAML: one for each pool, the first pool first.

    What only the run itself learns stands there as the word for it: the digests of its dataset and encoding, and the
    model that it starts from.

    Args:
        deployment: The cluster's settings, the workdir and the variables of the launcher.
        recipe: The run's recipe; empty: that of the deployment.
        overrides: Settings of the run that differ from the recipe's.

    Raises:
        ConfigError: If the settings are wrong, or if the run does not train as a TrainJob.
    """
    settings = resolve(recipe or deployment.recipe, [*deployment.cluster, *overrides])
    if settings.launch.where != "trainjob":
        raise ConfigError(
            f"launch.where is {settings.launch.where}, so this run trains in the pod of its own step and submits no "
            "TrainJob; set launch.where=trainjob"
        )
    data = ("BASE_MODEL", "ENCODING_KEY", "DATASET", settings.seed, settings.train)
    arguments, placement = TrainerArguments(settings.run, deployment.workdir, *data), settings.placement
    texts = []
    for pool in _pools(LaunchLimits(settings.launch, placement)):
        job = render(arguments, placement, pool, placement.nodes, 1, environment=deployment.env)
        seconds = stop_seconds(settings.train.limits, placement, pool)
        about = f"# Pool {pool}: {seconds:g} s to save, of the {pod_grace(placement, pool)} s that its nodes leave.\n"
        if settings.train.epochs is not None:
            about += "# The run gives train.steps for train.epochs: how many an epoch has is known with the dataset.\n"
        texts.append(about + yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=120))
    return "---\n".join(texts)


def _pools(limits: LaunchLimits) -> tuple[Pool, ...]:
    return ("spot", "on-demand") if limits.has_spot else ("on-demand",)
