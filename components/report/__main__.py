"""``python -m components.report --workdir demo --run first`` writes what a person wants to know of a run.

That is runs/<run>/report.html, one self-contained page, and runs/<run>/report.json with the same numbers. It reads what
the other steps left behind, works after a failed run too, and writes both anew each time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from components.command import run_step, step_parser
from components.progress import Progress
from components.report.config import ReportConfig
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("report", __doc__)
    parser.add_argument("--run", required=True, help="name of the run, its folder below runs/")
    parser.add_argument("--status", default="SUCCEEDED", help="how the pipeline ended; FAILED says so on the page")
    return run_step(parser, ReportConfig, argv, _report)


def _report(
    config: ReportConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> dict[str, Any]:
    from components.report.reporting import report

    return report(config, arguments.run, arguments.status, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
