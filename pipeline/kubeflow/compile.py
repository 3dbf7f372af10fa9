"""What comes to a cluster, as text to read: the pipeline as Kubeflow's intermediate representation (IR), the TrainJobs.

The pipeline is one YAML file, named by its digest. Kubeflow's dashboard shows its description, and of its parameters no
more than name, type and default, sorted by name: so the description is the help of the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from components.accounting.ledger import Pool
from components.digests import digest_file
from components.errors import ConfigError
from components.html.formatting import one_line
from components.storage.files import explained
from pipeline.config import resolve
from pipeline.kubeflow.release import Deployment
from pipeline.kubeflow.step_pods import on_cluster
from pipeline.launch.checks.demands import as_json, demands
from pipeline.launch.context import TrainerArguments
from pipeline.launch.policy import LaunchLimits
from pipeline.launch.render import render
from pipeline.placement import pod_grace, stop_seconds
from pipeline.recipe import descriptions

_NAME_DIGITS = 16
# Characters of a description: it is part of an address when a version is uploaded.
MOST_DESCRIPTION = 2000


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

    from pipeline.dag import PURPOSE, build

    defaults = {"recipe": deployment.recipe, "workdir": deployment.workdir}
    with explained(f"write {target}"):
        text = describe(deployment, recipe or deployment.recipe, PURPOSE)
        pods = as_json(demands(settings))
        pipeline = build(on_cluster(settings, deployment), deployment.cluster, text, pods)
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


def describe(deployment: Deployment, recipe: str, purpose: str) -> str:
    """Return the help of the dashboard's form: what to type into each field, and the recipes of the release.

    Args:
        deployment: The release.
        recipe: The run that decides on the pods of this version.
        purpose: What the pipeline is for; comes first.

    Returns:
        Markdown of at most `MOST_DESCRIPTION` characters: if there are too many recipes, the last are only counted.
    """
    account = deployment.service_account
    lines = [
        purpose,
        "",
        f"To start a run: Create run, then Start. Every field has a default that works: {label(deployment.recipe)}.",
        "",
        "- recipe: one of the names below, or the text of a recipe.",
        "- source: s3://bucket/prefix with your images; `recipe` stands for the recipe's own.",
        '- overrides: settings, such as `["train.steps=800", "launch.budget_usd=50"]`; `["none"]` changes none.',
        "- workdir: s3://bucket/prefix that keeps everything. The report is in runs/, and in the step report here.",
        *([f"- Service Account: type `{account}`, or the run may not read what it needs."] if account else []),
        "- Recurring run: its cron has six fields here, seconds first; `0 0 3 * * *` is 03:00 every day.",
        "",
        f"This version has the pods of {label(recipe)}. A run that needs others is rejected at its start; for it,",
        "darkroom submit --file deploy.yaml makes a version of its own.",
        "",
        "Recipes:",
        "",
    ]
    text = "\n".join(lines) + "\n"
    recipes = [f"- {name}: {says}" for name, says in descriptions().items()]
    shown = len(recipes)
    while len(text) + sum(len(one) + 1 for one in recipes[:shown]) + 80 > MOST_DESCRIPTION:
        shown -= 1
    rest = len(recipes) - shown
    more = [f"- and {rest} more: the ConfigMap {deployment.config_maps.recipes or 'of recipes'} has them all"]
    return "\n".join([text + recipes[0], *recipes[1:shown], *(more if rest else [])])


def label(recipe: str) -> str:
    """Return what a recipe is called in a description: its name, or that it is a text."""
    return "a recipe of its own" if "\n" in recipe else f"recipe {one_line(recipe)[:100]}"
