"""A process that a failed test takes along."""

from __future__ import annotations

import subprocess
from types import TracebackType


class Process(subprocess.Popen[str]):
    """A process whose block, left by an error, kills it: to wait for its end could take for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)
