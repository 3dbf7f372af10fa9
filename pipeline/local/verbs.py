"""The verbs about runs on this machine: pause, resume, runs, and status, logs and cost of such runs."""

from __future__ import annotations

import argparse
import os
import signal
import time
import webbrowser
from pathlib import Path
from typing import Any

from rich.console import Console

from components.errors import EXIT_DONE, ConfigError, DarkroomError
from components.storage.lease import PIPELINE, Holder, read_holder
from components.storage.open import open_storage
from pipeline import command_line
from pipeline.command_line import Parser, Verb, add_json, add_verb, print_json
from pipeline.local.log import show_log
from pipeline.local.runs import LocalRun, find, names, read_facts, workdir_or_last
from pipeline.local.tables import comparison, comparison_rows, fact_rows, run_rows

_WORKDIR = "folder or s3://bucket/prefix (default: the one that was used last)"
FACTS_KEYS = {
    "run": "name of the run",
    "workdir": "address of its workdir",
    "state": "running, done, stopped, failed, killed (without a word), new, or kept (trained again since)",
    "holder": "who runs it, while it is running",
    "step, saved_step, steps": "optimizer steps that are done, that are saved, and in all",
    "loss": "loss of the last step",
    "started": "when it began, in seconds since 1970",
    "seconds, usd": "wall clock and cost of its training",
    "published": "folder of the model that it published",
    "lineage": "what it goes on from, or what goes on from it",
    "error": "why it failed or stopped",
    "report": "its report; null if there is none yet",
}
COMPARISON_KEYS = {
    "runs": "their names, under `name`",
    "settings, numbers": "what differs: a value for each run, by name",
}
_RUN = "name of the run, or the beginning of it"
_POLL_SECONDS = 0.2
_FLAGS_OF_A_CLUSTER = ("endpoint", "namespace", "token_file", "ca_file", "context", "ui")


def add_verbs(verbs: Any) -> None:
    """Add ``pause``, ``resume`` and ``runs``."""
    pause = add_verb(
        verbs, "pause", "stop a run on this machine, with its state saved", _pause, ["darkroom pause demo"]
    )
    _run_arguments(pause)
    summary = "go on with a run that was stopped, paused or killed"
    _run_arguments(add_verb(verbs, "resume", summary, _resume, ["darkroom resume demo"]))
    _add_runs(verbs.add_parser("runs", help="list, show, open, compare and remove runs on this machine"))


def add_continue(run: Parser) -> None:
    """Let ``run`` go on with an earlier run instead of a recipe."""
    run.add_argument(
        "--continue",
        dest="continued",
        default="",
        metavar="RUN",
        help="go on with a run instead of a recipe; with another train.steps it is a new run that begins with the "
        "weights and moments of that one, and each step's learning rate is that of a run of the new length",
    )


def _add_runs(parser: Parser) -> None:
    verbs = command_line.add_verbs(parser)
    ls = add_verb(verbs, "ls", "list the runs of a workdir", _ls, ["darkroom runs ls --workdir work"])
    ls.add_argument("--workdir", default="", help=_WORKDIR)
    add_json(ls, **{"[]": "the runs, each as `darkroom runs show` has it, without its report"})
    show = add_verb(verbs, "show", "show what is known of a run", _show, ["darkroom runs show demo-1a2b"])
    _run_arguments(show)
    add_json(show, **FACTS_KEYS)
    summary = "open the report of a run in a browser"
    _run_arguments(add_verb(verbs, "open", summary, _open, ["darkroom runs open demo-1a2b"]))
    summary = "show in which settings and numbers runs differ"
    compare = add_verb(verbs, "compare", summary, _compare, ["darkroom runs compare demo-1a demo-2b"])
    compare.add_argument("runs", nargs="+", metavar="RUN", help=_RUN)
    compare.add_argument("--workdir", default="", help=_WORKDIR)
    add_json(compare, **COMPARISON_KEYS)
    summary = "remove a run's folder; models that it published stay"
    rm = add_verb(verbs, "rm", summary, _rm, ["darkroom runs rm demo-1a2b --yes"])
    rm.add_argument("runs", nargs="+", metavar="RUN", help="name of the run")
    rm.add_argument("--workdir", default="", help=_WORKDIR)
    rm.add_argument("--yes", action="store_true", help="remove; without it, only say what would be removed")


def prefer_here(parser: argparse.ArgumentParser, here: Verb) -> None:
    """Let a verb about runs on a cluster work for runs on this machine, too.

    Args:
        parser: The verb's.
        here: Does the same for a run on this machine.
    """
    elsewhere: Verb = parser.get_default("verb")

    def verb(arguments: argparse.Namespace) -> int:
        is_asked_for = any(getattr(arguments, name, "") for name in _FLAGS_OF_A_CLUSTER)
        if is_asked_for or (not arguments.run and os.environ.get("KF_PIPELINES_ENDPOINT")):
            return elsewhere(arguments)
        try:
            find(arguments.run, arguments.workdir)
        except DarkroomError:
            if _has_cluster():
                return elsewhere(arguments)
            raise
        return here(arguments)

    parser.set_defaults(verb=verb)


def _has_cluster() -> bool:
    """Tell whether anything here leads to a cluster."""
    configured = any(
        os.environ.get(name) for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", "KUBECONFIG")
    )
    return configured or (Path.home() / ".kube" / "config").exists()


def status(arguments: argparse.Namespace) -> int:
    """Show how a run on this machine gets on."""
    return _show(arguments)


def logs(arguments: argparse.Namespace) -> int:
    """Show the log of a run on this machine."""
    run = find(arguments.run, arguments.workdir)
    console = Console(highlight=False)

    def print_line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    show_log(run, arguments.step, arguments.lines, arguments.follow, lambda: _holder(run) is not None, print_line)
    return EXIT_DONE


def _run_arguments(parser: Parser) -> None:
    parser.add_argument("run", nargs="?", default="", help=f"{_RUN} (default: the one that was used last)")
    parser.add_argument("--workdir", default="", help=_WORKDIR)


def _print(*lines: str) -> None:
    console = Console(highlight=False)
    for text in lines:
        console.print(text, markup=False, soft_wrap=True)


def _holder(run: LocalRun) -> Holder | None:
    return read_holder(run.folder, PIPELINE)


def _pause(arguments: argparse.Namespace) -> int:
    run = find(arguments.run, arguments.workdir)
    holder = _holder(run)
    if holder is None:
        _print(f"{run.name} is not running; darkroom runs show {run.name} says how it stands")
        return EXIT_DONE
    if not holder.is_alive_here:
        raise ConfigError(f"{run.name} is run by process {holder.pid} on {holder.host}; pause it there")
    os.kill(holder.pid, signal.SIGTERM)
    _print(f"{run.name} stops as soon as its state is saved")
    while holder.is_alive_here:
        time.sleep(_POLL_SECONDS)
    facts = read_facts(run)
    _print(f"{run.name} is {facts.state}, step {facts.saved_step} is saved; darkroom resume {run.name} goes on")
    return EXIT_DONE


def _resume(arguments: argparse.Namespace) -> int:
    return continue_run(arguments.run, arguments.workdir, [])


def continue_run(name: str, workdir: str, overrides: list[str]) -> int:
    """Go on with a run; see `pipeline.local.continuing`."""
    from pipeline.local.continuing import settings_to_continue
    from pipeline.local.run import run_settings

    run = find(name, workdir)
    local = run.workdir.local_path()
    place = run.workdir.url if local is None else str(local)
    run_settings(settings_to_continue(run, overrides), place, Console(highlight=False))
    return EXIT_DONE


def _ls(arguments: argparse.Namespace) -> int:
    place = workdir_or_last(arguments.workdir)
    workdir = open_storage(place)
    facts = [read_facts(LocalRun(workdir, name)) for name in names(workdir)]
    if arguments.json:
        print_json([one.to_json() for one in facts])
    else:
        _print(*run_rows(facts, place))
    return EXIT_DONE


def _show(arguments: argparse.Namespace) -> int:
    run = find(arguments.run, arguments.workdir)
    facts = read_facts(run)
    report = f"{run.folder.url}/report.html" if run.folder.exists("report.html") else None
    if arguments.json:
        print_json({**facts.to_json(), "report": report})
    else:
        _print(*fact_rows(facts, report))
    return EXIT_DONE


def _open(arguments: argparse.Namespace) -> int:
    run = find(arguments.run, arguments.workdir)
    if not run.folder.exists("report.html"):
        raise ConfigError(f"{run.name} has no report yet; it is written while the run trains, and when it ends")
    path = run.folder.local_path("report.html")
    address = path.as_uri() if path is not None else f"{run.folder.url}/report.html"
    _print(str(path) if path is not None else address)
    if path is not None:
        webbrowser.open(address)
    return EXIT_DONE


def _compare(arguments: argparse.Namespace) -> int:
    runs = [find(name, arguments.workdir) for name in arguments.runs]
    if len(runs) < 2:
        raise ConfigError(f"{arguments.runs[0]}: one run has nothing to be compared with; give two or more")
    documents = [[_read(run, key) for run in runs] for key in ("config.json", "report.json")]
    compared = comparison([run.name for run in runs], *documents)
    if arguments.json:
        print_json(compared)
    else:
        _print(*comparison_rows(compared))
    return EXIT_DONE


def _read(run: LocalRun, key: str) -> dict[str, Any]:
    try:
        return dict(run.folder.read_json(key))
    except DarkroomError:
        return {}


def _rm(arguments: argparse.Namespace) -> int:
    runs = [find(name, arguments.workdir) for name in arguments.runs]
    for run, text in zip(runs, arguments.runs, strict=True):
        if run.name != text:
            raise ConfigError(f"{text!r}: give the whole name to remove a run, such as {run.name}")
        _check_unused(run)
    for run in runs:
        if arguments.yes:
            _remove(run)
            _print(f"removed {run.name}")
        else:
            size = sum(entry.size for entry in run.folder.list())
            _print(f"{run.name}: {size / 1e6:,.1f} MB would be removed; --yes removes it")
    return EXIT_DONE


def _check_unused(run: LocalRun) -> None:
    """Check that a run does not run, and that no other one still needs its checkpoint.

    Raises:
        ConfigError: If so.
    """
    if (holder := _holder(run)) is not None:
        raise ConfigError(f"{run.name} is run by process {holder.pid} on {holder.host}; darkroom pause stops it")
    for name in names(run.workdir):
        other = LocalRun(run.workdir, name)
        continued = (_read(other, "config.json").get("train") or {}).get("continued") or {}
        if continued.get("run") == run.name and read_facts(other).saved_step == 0:
            raise ConfigError(f"{name} continues {run.name} and has no checkpoint of its own yet; remove it first")


def _remove(run: LocalRun) -> None:
    # What lists the run goes last, so that a removal that is interrupted can be repeated.
    for entry in list(run.folder.list()):
        if entry.key != "config.json":
            run.folder.delete(entry.key)
    run.workdir.delete_tree(f"runs/{run.name}")
