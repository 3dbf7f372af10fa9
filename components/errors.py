"""Every error that Darkroom raises on purpose, with its exit code.

DarkroomError            70  something inside went wrong
├── ConfigError          78  the settings are wrong; a retry cannot help
│   └── Diverged                 training gave no finite gradient for too long
├── DataError            65  the data are missing, corrupt or unreadable; a retry cannot help
│   ├── DamagedFile          a file of the workdir is not what was written; the message says how to repair that
│   └── ImageRejected        one image cannot be used; the step counts it and goes on
├── StorageError         74  storage could not be read or written; a retry may help
│   ├── NotFound             the key does not exist
│   └── LeaseHeld            another process works on the same run; wait for it, or stop it
├── LeaseLost            70  another process has taken over the run from this one, which stops
├── OutOfMemory          71  a batch did not fit into memory; starting again continues with smaller ones
├── Hung                124  a rank made no step for too long; its stacks are in the log, starting again continues
└── Preempted            75  the node is being taken away; the state is saved, starting again continues

The codes are those of BSD ``sysexits.h``, and 124 that of ``timeout(1)``. Each message names the value, what was
expected and what to do.
"""

from __future__ import annotations

import re

EXIT_DONE = 0

# A user and password in an address, and the parts of its query that give access to what it names.
_USER = re.compile(r"(?<=://)[^/?#\s@'\"\\]+@")
_KEY = re.compile(
    r"(?<=[?&])((?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId"
    r"|Signature|sig|(?:access_)?token|api_?key|password|secret)=)[^&#\s'\")\\]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Return text in which ``***`` stands for the credentials of each address (``s3://***@bucket``, ``?sig=***``).

    Every error's message, every event and every line of a log passes through here.
    """
    return _KEY.sub(r"\1***", _USER.sub("***@", text)) if "://" in text else text


class DarkroomError(Exception):
    """Something inside went wrong (exit code 70, ``EX_SOFTWARE``)."""

    exit_code = 70

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class ConfigError(DarkroomError):
    """The settings are wrong, so a retry cannot help (exit code 78, ``EX_CONFIG``)."""

    exit_code = 78


class Diverged(ConfigError):
    """Training gave no finite gradient for too long; the last checkpoint is older than that."""


class DataError(DarkroomError):
    """The data are missing, corrupt or unreadable (exit code 65, ``EX_DATAERR``)."""

    exit_code = 65


class DamagedFile(DataError):
    """A file of the workdir is not what Darkroom wrote: its checksum is wrong, or a part of it is missing."""


class ImageRejected(DataError):
    """One image cannot be used; the step records the reason and goes on.

    Attributes:
        reason: A short, stable name that reports group by, such as ``not-an-image``.
        detail: A sentence with the value and what was expected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StorageError(DarkroomError):
    """Storage could not be read or written; a retry may help (exit code 74, ``EX_IOERR``)."""

    exit_code = 74


class NotFound(StorageError):
    """The key does not exist."""


class LeaseHeld(StorageError):
    """Another process works on the same run, so this one must not; a retry helps once that one has ended."""


class LeaseLost(DarkroomError):
    """Another process has taken over the run from this one, which must write nothing more (exit code 70)."""


class OutOfMemory(DarkroomError):
    """A batch did not fit into memory; the next start takes smaller ones (exit code 71, ``EX_OSERR``)."""

    exit_code = 71


class Hung(DarkroomError):
    """A rank made no step for too long, so its watchdog ended it (exit code 124, as in ``timeout(1)``)."""

    exit_code = 124


class Preempted(DarkroomError):
    """The node is being taken away and the state is saved (exit code 75, ``EX_TEMPFAIL``)."""

    exit_code = 75
