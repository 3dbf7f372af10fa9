"""Train the UNet on encoded shards.

    python -m components.train --workdir work --run first --encoding-key KEY --base-model DIR --set ranks=2

One process per device is started here, as --nproc-per-node, PET_NPROC_PER_NODE or the setting ``ranks`` says (a
number, auto, gpu or cpu). On several nodes start it once on each, with --nnodes, --node-rank, --master-addr and
--master-port or the PET_* variables of the same names, as for torchrun. SIGTERM, SIGINT or SIGHUP stop after the
current step, with the state saved. Exit codes: 0 done, 75 stopped and saved, 78 bad settings, 65 bad data, 124 hung,
anything else: a crash.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from components.errors import EXIT_DONE, DarkroomError, DataError
from components.processes.agent import Agent, Grace, Signals
from components.processes.node import this_node
from components.progress import Progress
from components.train.request import Request, parse

RANK = (sys.executable, "-m", "components.train.rank")


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks of this node, unless the training is finished already, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    progress = Progress()
    try:
        with Signals().listening() as signals:
            request = parse(arguments, __doc__)
            node = this_node({**os.environ, **request.node_variables}, request.config.ranks)
            if (last_step := _finished(request)) is not None:
                progress.event("finished", step=last_step)
                return EXIT_DONE
            command = [*RANK, *arguments, "--parent-pid", str(os.getpid())]
            limits = request.config.limits
            grace = Grace(limits.stop_grace_seconds, limits.crash_grace_seconds)
            return Agent(command, node, grace, signals, progress, request.parent).run(request.restarts)
    except DarkroomError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it, not a log collector
        return error.exit_code


def _finished(request: Request) -> int | None:
    """Return this training's last step if a whole checkpoint of it exists, else None."""
    from components.dataset.versions import read_only_dataset, read_version
    from components.model import checkpoints, locations
    from components.train.identity import training_identity

    newest = checkpoints.newest(request.run)
    if newest is None:
        return None
    dataset = read_version(request.dataset, request.version) if request.version else read_only_dataset(request.dataset)
    config = request.config.in_steps(dataset.epoch_samples)
    if newest.step != config.last_step:
        return None
    base = locations.fetch(request.base_model, request.workdir)
    if newest.training != training_identity(config, request.seed, dataset, base):
        return None
    try:
        newest.verify()
    except DataError as error:
        # The ranks find the newest checkpoint that is whole.
        print(f"warning: {error}", file=sys.stderr)  # noqa: T201
        return None
    return config.last_step


if __name__ == "__main__":
    sys.exit(main())
