"""One rank of a training; ``python -m components.train`` starts as many as a node has devices.

It reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them, and exits with the codes of
`components.errors`. Heavy modules are imported only once signals are handled and the watchdog runs.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from components.errors import DarkroomError
from components.processes.stopping import Stopping
from components.processes.watchdog import Watchdog
from components.progress import Progress
from components.train.processes.notices import Poller, source
from components.train.request import Request, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit code."""
    rank, progress = int(os.environ.get("RANK", "0")), Progress()
    stopping = Stopping(lambda event, detail: progress.event(event, rank=rank, why=detail))
    stopping.listen()
    try:
        request = parse(argv)
        stopping.grace = request.config.limits.stop_grace_seconds
        watchdog = _watchdog(request, rank, progress)
        watchdog.start()
        _watch_for_notices(request, stopping, rank, progress)
        from components.train.setup import work

        work(request, stopping, watchdog)
    except DarkroomError as error:
        print(f"rank {rank}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _watchdog(request: Request, rank: int, progress: Progress) -> Watchdog:
    limits = request.config.limits
    advice = "raise train.limits.hang_seconds or train.limits.start_seconds"
    return Watchdog(rank, progress, limits.start_seconds, limits.hang_seconds, request.parent, advice=advice)


def _watch_for_notices(request: Request, stopping: Stopping, rank: int, progress: Progress) -> None:
    """Poll the cloud on one rank of each node."""
    config = request.config.notices
    if config.cloud == "none" or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    read_notice = source(config.cloud, config.address, config.rebalance)

    def trouble(problem: str) -> None:
        progress.event("no-notices", rank=rank, source=config.address, problem=problem)

    Poller(read_notice, stopping.ask, trouble, config.every).start()


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    finally:
        # Threads that write a checkpoint, or the communication library's, may make a closing interpreter wait for peers
        # that are gone, or abort it, which would replace the exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
