"""The verbs that deal with runs on a cluster: submit, status, logs, stop, schedule and deploy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from components.errors import EXIT_DONE, ConfigError, DarkroomError, StorageError, without_credentials
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.command_line import Parser, Verb, add_json, add_verb, add_verbs, print_json, seconds, whole_number
from pipeline.config import resolve
from pipeline.kubeflow.cron import seconds_first
from pipeline.kubeflow.documents import STATUS_KEYS, recurring_document, run_document, training_document
from pipeline.kubeflow.installed import check_operators
from pipeline.kubeflow.lookup import find_run, folder_of
from pipeline.kubeflow.release import Deployment, read_deployment
from pipeline.kubeflow.tables import recurring_rows, run_rows, runs_rows, training_rows
from pipeline.messages import line
from pipeline.recipe import recipes

if TYPE_CHECKING:  # it takes a second to load
    from pipeline.kubeflow.client import Access, Kubeflow
    from pipeline.kubeflow.records import PipelineVersion, Run

_POLL_SECONDS = 10.0
_FINISHED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
_MOST_RUNS = 20
_RUN = "id or name, or how it begins"
_WORKDIR = "s3://bucket/prefix that holds everything"


def add_cluster_verbs(verbs: Any) -> None:
    """Add all of them."""
    _add_submit(verbs)
    _add_status(verbs)
    _add_logs(verbs)
    stop = _verb(verbs, "stop", "stop a run on the cluster; what it has saved stays", _stop, "darkroom stop 1a2b3c4d")
    stop.add_argument("run", help=_RUN)
    _add_schedule(verbs)
    deploy = _verb(
        verbs,
        "deploy",
        "make the pipeline and the recurring runs what a release says",
        _deploy,
        "darkroom deploy --file deploy.yaml",
    )
    deploy.add_argument("--file", required=True, type=Path, help="deploy.yaml, as the chart writes it")
    deploy.set_defaults(timeout=300.0)


def _add_submit(verbs: Any) -> None:
    submit = _verb(
        verbs,
        "submit",
        "start a run on the cluster",
        _submit,
        "darkroom submit --recipe demo",
        "darkroom submit --file deploy.yaml --recipe sd15-full --source s3://b/images",
        "darkroom submit --recipe mine.yaml --set train.steps=20000 --wait",
    )
    _request(submit)
    submit.add_argument("--workdir", default="", help=f"{_WORKDIR} (default: the release's)")
    submit.add_argument("--name", default="", help="the run's name in the dashboard (default: that of its folder)")
    submit.add_argument(
        "--wait", action="store_true", help="wait until it has ended; the exit code is 0 if it succeeded"
    )
    _version_arguments(submit)
    add_json(
        submit,
        id="Kubeflow's id of the run",
        name="its name in the dashboard",
        version="version of the pipeline that it uses",
        dashboard="address of its page",
        state="with --wait: Kubeflow's word for how it ended; else null",
    )


def _add_status(verbs: Any) -> None:
    examples = ("darkroom status", "darkroom status 1a2b3c4d", "darkroom status --json")
    status = _verb(verbs, "status", "show how runs get on, here or on the cluster", _status, *examples)
    status.add_argument("run", nargs="?", default="", help=f"{_RUN} (default: the newest runs)")
    status.add_argument("--workdir", default="", help="workdir of the run (default: the one that it was started with)")
    add_json(status, runs="without RUN: the newest runs, each as below", **STATUS_KEYS)


def _add_logs(verbs: Any) -> None:
    examples = ("darkroom logs 1a2b3c4d --follow", "darkroom logs 1a2b3c4d --step caption --lines 200")
    logs = _verb(verbs, "logs", "show the log of a run, here or on the cluster", _logs, *examples)
    logs.add_argument("run", nargs="?", default="", help=f"{_RUN} (default: the last run here)")
    logs.add_argument("--step", default="", help="the step (default: all of a run here, train of one on the cluster)")
    logs.add_argument("--follow", action="store_true", help="go on until the run has ended")
    logs.add_argument(
        "--lines", type=whole_number(1, 1_000_000), default=40, help="last lines to show (default: %(default)s)"
    )
    logs.add_argument("--workdir", default="", help="workdir of the run (default: the one that it was started with)")


def _add_schedule(all_verbs: Any) -> None:
    verbs = add_verbs(all_verbs.add_parser("schedule", help="list, set and remove runs that recur"))
    listing = _verb(verbs, "ls", "list the runs that recur", _schedule_ls, "darkroom schedule ls --json")
    add_json(listing, recurring="the recurring runs: id, name, cron, enabled, owner (null: not darkroom's)")
    one = _verb(
        verbs,
        "set",
        "make a run recur; does nothing if it already recurs so",
        _schedule_set,
        "darkroom schedule set nightly --cron '0 3 * * *' --recipe cats.yaml \\\n    --workdir s3://bucket/darkroom",
    )
    one.add_argument("name", help="the recurring run's name: a-z, 0-9 and '-'")
    one.add_argument("--cron", required=True, help="five fields: '0 3 * * *' is 03:00 every day (six: seconds first)")
    _request(one)
    one.add_argument("--workdir", default="", help=f"{_WORKDIR} (default: the release's)")
    one.add_argument("--paused", action="store_true", help="keep it, but do not run it")
    _version_arguments(one)
    removal = _verb(
        verbs,
        "rm",
        "remove a recurring run; runs that it has started go on",
        _schedule_rm,
        "darkroom schedule rm nightly",
    )
    removal.add_argument("name", help="its name")


def _verb(verbs: Any, name: str, summary: str, verb: Verb, *examples: str) -> Parser:
    parser = add_verb(verbs, name, summary, verb, examples)
    api = parser.add_argument_group("Kubeflow's API")
    api.add_argument("--endpoint", default="", help="its address (default: KF_PIPELINES_ENDPOINT, or the cluster's)")
    api.add_argument("--namespace", default="", help="the runs' namespace, if users have namespaces of their own")
    api.add_argument("--token-file", default="", help="file with a token, read again before each call")
    api.add_argument("--ca-file", default="", help="certificates that the server's is checked against")
    api.add_argument("--context", default="", help="context of the kubeconfig")
    api.add_argument("--ui", default="", help="address of the dashboard for links, if it is another")
    api.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        help="seconds to repeat a call without an answer (default: %(default)s)",
    )
    return parser


def _request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, help=f"one of {', '.join(recipes())}, or a YAML file")
    parser.add_argument("--source", default="", help="s3://bucket/prefix with the images (default: the recipe's)")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override settings"
    )


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, help="deploy.yaml of the release, so that this run gets pods of its own")
    parser.add_argument("--pipeline", default="darkroom", help="name of the pipeline (default: %(default)s)")
    parser.add_argument("--experiment", default="darkroom", help="experiment of the run (default: %(default)s)")
    parser.add_argument("--service-account", default="", help="account of the run's pods (default: the release's)")


def _connect(arguments: argparse.Namespace, deployment: Deployment | None = None) -> Kubeflow:
    from pipeline.kubeflow.client import connect

    return connect(_access(arguments, deployment))


def _access(arguments: argparse.Namespace, deployment: Deployment | None) -> Access:
    from pipeline.kubeflow.client import Access

    endpoint = arguments.endpoint or (deployment.endpoint if deployment else "")
    namespace = arguments.namespace or (deployment.namespace if deployment else "kubeflow")
    files = (arguments.token_file, arguments.ca_file)
    return Access(endpoint, namespace, *files, arguments.context, arguments.ui, arguments.timeout)


def _console() -> Console:
    return Console(highlight=False)


def _print_lines(*lines: str) -> None:
    console = _console()
    for text in lines:
        console.print(without_credentials(text), markup=False, soft_wrap=True)


def _warn(text: str) -> None:
    """Show a line beside what --json prints."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def _submit(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.deploy import check_places, check_workdir, parameters
    from pipeline.work import OpenRun, check

    deployment = _deployment(arguments)
    overrides = [text for group in arguments.set for text in group]
    settings = resolve(arguments.recipe, [*deployment.cluster, *overrides], arguments.source)
    workdir = arguments.workdir or (deployment.workdir if arguments.file else "")
    if workdir:
        check_workdir(workdir)
    check_places(settings)
    check(OpenRun(settings, open_storage(workdir or "workdir")), "client")
    given = parameters(arguments.recipe, workdir, arguments.source, overrides)
    kubeflow = _connect(arguments, deployment)
    version, account = _pinned(kubeflow, arguments, deployment, overrides)
    name = arguments.name or settings.run
    experiment_id = kubeflow.experiment(deployment.experiment)
    chosen = {key: value for key, value in given.items() if key != "workdir" or value}
    run_id = kubeflow.submit(name, version, experiment_id, chosen, account)
    link = kubeflow.link(run_id)
    if not arguments.json:
        _print_lines(f"run        {line(name)}", f"id         {run_id}", f"version    {version.name}")
        _print_lines(f"dashboard  {link}", f"next       darkroom status {run_id}")
    ended = _wait(kubeflow, run_id, quiet=arguments.json) if arguments.wait else None
    if arguments.json:
        state = ended.state if ended is not None else None
        print_json({"id": run_id, "name": name, "version": version.name, "dashboard": link, "state": state})
    if ended is not None and ended.state != "SUCCEEDED":
        reason = f": {ended.error}" if ended.error else ""
        raise DarkroomError(f"run {run_id} {ended.state.lower()}{reason}; see darkroom status")
    return EXIT_DONE


def _deployment(arguments: argparse.Namespace) -> Deployment:
    """Return the release's deployment, or what the arguments say of it."""
    if arguments.file is not None:
        return read_deployment(arguments.file)
    return Deployment.parse({"pipeline": arguments.pipeline, "experiment": arguments.experiment})


def _pinned(
    kubeflow: Kubeflow, arguments: argparse.Namespace, deployment: Deployment, overrides: Sequence[str]
) -> tuple[PipelineVersion, str]:
    """Return the version that a run uses, uploaded for it if the release's file is given, and its pods' account."""
    from pipeline.kubeflow.deploy import RunRequest, upload, version_for

    settings = resolve(arguments.recipe, [*deployment.cluster, *overrides], arguments.source)
    check_operators(kubeflow, [settings], arguments.context, _warn)
    if arguments.file is None:
        request = RunRequest(arguments.recipe, arguments.source, overrides)
        version, account = version_for(kubeflow, deployment.pipeline, request, _print_lines)
        return version, arguments.service_account or account
    pipeline_id = kubeflow.make_pipeline(deployment.pipeline, "")
    version = upload(kubeflow, pipeline_id, deployment, arguments.recipe, overrides, _print_lines)
    return version, arguments.service_account or deployment.service_account


def _wait(kubeflow: Kubeflow, run_id: str, quiet: bool, sleep: Callable[[float], object] = time.sleep) -> Run:
    """Return a run once it has ended; show each change of its state, unless asked to be quiet."""
    state = ""
    while True:
        run = kubeflow.run(run_id)
        if run.state != state:
            state = run.state
            if not quiet:
                _print_lines(f"{datetime.now(UTC):%H:%M:%S}   {state.lower()}")
        if state in _FINISHED:
            return run
        sleep(_POLL_SECONDS)


def _status(arguments: argparse.Namespace) -> int:
    kubeflow = _connect(arguments)
    now = datetime.now(UTC)
    if not arguments.run:
        runs = kubeflow.runs(_MOST_RUNS)
        if arguments.json:
            print_json({"runs": [run_document(run, kubeflow.link(run.id)) for run in runs]})
        else:
            _print_lines(*runs_rows(runs, now))
        return EXIT_DONE
    run = find_run(kubeflow, arguments.run)
    if arguments.json:
        print_json(_whole_document(kubeflow, run, arguments.workdir))
        return EXIT_DONE
    _print_lines(*run_rows(run, now), f"dashboard   {kubeflow.link(run.id)}")
    try:
        _print_lines(*training_rows(folder_of(run, arguments.workdir)))
    except DarkroomError as error:
        _print_lines(line(f"training    unknown: {error}"))
    return EXIT_DONE


def _whole_document(kubeflow: Kubeflow, run: Run, workdir: str) -> dict[str, Any]:
    """Return what ``status RUN --json`` prints."""
    document = run_document(run, kubeflow.link(run.id))
    try:
        return {**document, "training": training_document(folder_of(run, workdir))}
    except DarkroomError as error:
        return {**document, "training": {"error": str(error)}}


def _logs(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.logs import show

    if not arguments.run:
        raise ConfigError("which run? give its id or name, or how it begins; darkroom status lists the runs")
    kubeflow = _connect(arguments)
    run = find_run(kubeflow, arguments.run)
    try:
        folder: Storage | None = folder_of(run, arguments.workdir)
    except (ConfigError, StorageError) as error:
        folder = None
        _print_lines(line(f"the run's own records cannot be read: {error}"))

    def ended() -> bool:
        return kubeflow.run(run.id).state in _FINISHED

    namespace = arguments.namespace or "kubeflow"
    show(run.id, folder, arguments.step or "train", arguments.lines, namespace, arguments.follow, ended, _print_lines)
    return EXIT_DONE


def _stop(arguments: argparse.Namespace) -> int:
    kubeflow = _connect(arguments)
    run = find_run(kubeflow, arguments.run)
    if run.state in _FINISHED:
        _print_lines(f"{line(run.name)} has ended already: {run.state.lower()}")
        return EXIT_DONE
    kubeflow.stop(run.id)
    _print_lines(
        f"{line(run.name)} is being stopped; training saves its state first",
        "What is captioned, encoded and saved stays: submitted again with equal",
        "settings, the run goes on from there.",
    )
    return EXIT_DONE


def _schedule_ls(arguments: argparse.Namespace) -> int:
    recurring = _connect(arguments).recurring()
    if arguments.json:
        print_json({"recurring": [recurring_document(one) for one in recurring]})
    else:
        _print_lines(*recurring_rows(recurring))
    return EXIT_DONE


def _schedule_set(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.deploy import check, parameters, reconcile
    from pipeline.kubeflow.schedules import BY_HAND, RecurringSpec

    deployment = _deployment(arguments)
    overrides = [text for group in arguments.set for text in group]
    if not arguments.workdir and arguments.file is None:
        raise ConfigError("--workdir is missing: expected s3://bucket/prefix, or the release's deploy.yaml (--file)")
    workdir = arguments.workdir or deployment.workdir
    schedule = {"name": arguments.name, "cron": arguments.cron, "recipe": arguments.recipe, "workdir": workdir}
    schedule |= {"source": arguments.source, "overrides": overrides}
    alone = Deployment.parse({**deployment.model_dump(), "schedules": [schedule]})
    check(alone)
    kubeflow = _connect(arguments, deployment)
    version, account = _pinned(kubeflow, arguments, deployment, overrides)
    spec = RecurringSpec(
        arguments.name,
        seconds_first(arguments.cron),
        parameters(arguments.recipe, workdir, arguments.source, overrides),
        version.name,
        deployment.experiment,
        account,
        not arguments.paused,
        BY_HAND,
    )
    reconcile(kubeflow, [spec], {version.name: version}, BY_HAND, False, _print_lines)
    return EXIT_DONE


def _schedule_rm(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.schedules import owner_of

    kubeflow = _connect(arguments)
    runs = [run for run in kubeflow.recurring() if run.name == arguments.name]
    if not runs:
        raise ConfigError(f"no recurring run {line(arguments.name)}; darkroom schedule ls lists them")
    if foreign := [run for run in runs if owner_of(run.description) is None]:
        raise ConfigError(f"the recurring run {arguments.name} ({foreign[0].id}) is not darkroom's; see the dashboard")
    for run in runs:
        kubeflow.delete_recurring(run.id)
    _print_lines(f"{arguments.name}: removed")
    return EXIT_DONE


def _deploy(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.deploy import deploy

    deployment = read_deployment(arguments.file)

    def connect() -> Kubeflow:
        kubeflow = _connect(arguments, deployment)
        if not deployment.withdraw:
            schedules = [resolve(one.recipe, [*deployment.cluster, *one.overrides]) for one in deployment.schedules]
            runs = [resolve(deployment.recipe, deployment.cluster), *schedules]
            check_operators(kubeflow, runs, arguments.context, _warn)
        return kubeflow

    deploy(deployment, connect, _print_lines)
    return EXIT_DONE
