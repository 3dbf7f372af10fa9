"""A lease: the right to be the one writer of a run, kept in any storage by writes that only create.

``leases/<name>/000000001.json`` says who took the first generation, ``…/000000002.json`` the second; the highest one
counts. A generation is taken by creating its file, which only one of several takers can do, and is never changed. Its
holder renews ``….beat`` beside it, and writes there that it is done. So no store needs locks or conditional changes.

A second taker is rejected while the holder lives. The lease of a dead holder is taken over at once if that was a
process of this machine that is gone, and `EXPIRY_SECONDS` after its last beat otherwise; the store's own clock decides,
since those of two machines differ. A holder that lost its lease finds a higher generation than its own before its next
write, if it writes through `Lease.guard`, and stops.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from components.errors import DamagedFile, DataError, LeaseHeld, LeaseLost, NotFound, StorageError
from components.storage.base import Storage
from components.storage.guarded import GuardedStorage

# Names of leases: of the pipeline that a person started, and of the training in it, on whatever machines.
PIPELINE, TRAINING = "pipeline", "training"
BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
# How long a holder relies on having looked whether the lease is still its own.
CONFIRM_SECONDS = 1.0
# Some stores let several create an object at the same moment (see `components.storage.s3`); the last of them counts.
SETTLE_SECONDS = 1.0

_FOLDER = "leases"
_TRIES = 5
_CLAIM = re.compile(r"(\d{9})\.json")


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        purpose: What the lease is needed for, in words: ``the training of demo-1a2b3c4d``.
        host: Name of its machine, for people.
        machine: Identity of its machine since it was booted, and of the container.
        pid: Its process id.
        process: Tells it from other processes that had or will have the same id; empty if the system cannot.
        since: When it took the lease, in seconds since 1970 by its own clock.
        token: Tells this lease from all others.
        kind: A holder gives way to a taker of its own kind, unless this is empty.
    """

    purpose: str
    host: str
    machine: str
    pid: int
    process: str
    since: float
    token: str
    kind: str = ""

    @classmethod
    def this_process(cls, purpose: str, kind: str = "") -> Self:
        """Return this process as the holder of a new lease."""
        pid = os.getpid()
        token = secrets.token_hex(8)
        return cls(purpose, socket.gethostname(), _machine(), pid, _process(pid) or "", time.time(), token, kind)

    @property
    def is_here(self) -> bool:
        """Whether its machine is this one, not restarted since."""
        return self.machine == _machine()

    @property
    def is_alive_here(self) -> bool:
        """Whether its process still runs on this machine."""
        return self.is_here and _process(self.pid) == self.process


class Claim(NamedTuple):
    """A generation of a lease as its holder took it; `version` changes if another one writes it."""

    generation: int
    version: str

    def __str__(self) -> str:
        return f"{self.generation}:{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the claim that a text stands for."""
        generation, _, version = text.partition(":")
        return cls(int(generation), version)


class Lease:
    """A lease that this process, or the one that started it, holds.

    Args:
        run: The folder that it is about.
        name: Tells several leases of one folder apart.
        claim: The generation that is held.
    """

    def __init__(self, run: Storage, name: str, claim: Claim) -> None:
        self.claim = claim
        self._run = run
        self._folder = f"{_FOLDER}/{name}"
        self._confirmed_at = _now()
        self._lock = threading.Lock()

    def confirm(self) -> None:
        """Look whether the lease is still held.

        Raises:
            LeaseLost: If another process has taken it over, or somebody has deleted it.
            StorageError: If the storage cannot be read.
        """
        began = _now()
        newest = _newest(self._run, self._folder)
        if newest != self.claim:
            raise LeaseLost(
                f"another process has taken over {self._run.url} from this one (generation "
                f"{newest.generation if newest else 0} of {self._folder}, this one is {self.claim.generation}): "
                "this process stops, and writes nothing more"
            )
        self._confirmed_at = began

    def check(self) -> None:
        """Look whether the lease is still held, unless that was done a moment ago; raises as `confirm` does."""
        with self._lock:
            if _now() - self._confirmed_at > CONFIRM_SECONDS:
                self.confirm()

    def guard(self, storage: Storage) -> Storage:
        """Return the same storage, which checks the lease before each write."""
        return GuardedStorage(storage, self.check)

    @contextmanager
    def kept(self, on_lost: Callable[[], object], every: float = BEAT_SECONDS) -> Iterator[Self]:
        """Renew the lease in a thread, and give it back at the end.

        Args:
            on_lost: Called from the thread once if another process has taken the lease over.
            every: Seconds between two beats.
        """
        ended = threading.Event()
        thread = threading.Thread(target=self._beat_until, args=(ended, on_lost, every), name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            with suppress(StorageError, LeaseLost):  # what ended the work is worth more than its lease, which expires
                self.release()

    def release(self) -> None:
        """Give the lease back: the next one need not wait.

        Raises:
            LeaseLost: If another process has taken it over.
        """
        self.confirm()
        # The claim stays, so that the next generation is higher, and this holder does not take it for its own.
        self._run.write(_beat_key(self._folder, self.claim.generation), b"released\n")

    def _beat_until(self, ended: threading.Event, on_lost: Callable[[], object], every: float) -> None:
        while not ended.wait(every):
            try:
                self.confirm()
                self._run.write(_beat_key(self._folder, self.claim.generation), f"{time.time()}\n".encode())
            except LeaseLost:
                on_lost()
                return
            except StorageError:
                continue  # the store is away; before the next write the lease is checked again


def acquire(
    run: Storage, name: str, purpose: str, settle: Callable[[float], object] = time.sleep, kind: str = ""
) -> Lease:
    """Take a lease.

    Args:
        run: The folder that it is about.
        name: Tells several leases of one folder apart.
        purpose: What it is needed for, in words, for those who are rejected.
        settle: Waits so many seconds.
        kind: A holder of the same kind gives way at once, unless this is empty.

    Raises:
        LeaseHeld: If another process holds it.
        StorageError: If the storage cannot be read or written.
    """
    for remaining in range(_TRIES, 0, -1):
        try:
            return _acquire(run, name, Holder.this_process(purpose, kind), settle)
        except NotFound:  # others take and give back meanwhile
            if remaining == 1:
                raise
    raise AssertionError("the last try returns or raises")


def _acquire(run: Storage, name: str, holder: Holder, settle: Callable[[float], object]) -> Lease:
    folder = f"{_FOLDER}/{name}"
    last = _newest(run, folder)
    if last is not None:
        _check_free(run, folder, last.generation, holder.kind)
    generation = last.generation + 1 if last is not None else 1
    is_created = run.create(_claim_key(folder, generation), json.dumps(asdict(holder), indent=1).encode() + b"\n")
    if is_created and run.local_path() is None:
        settle(SETTLE_SECONDS)
    newest = _newest(run, folder)
    current = _holder(run, folder, newest.generation if newest is not None else generation)
    if newest is None or current.token != holder.token:
        raise _held(current, 0.0)
    _delete_earlier(run, folder, generation)
    return Lease(run, name, newest)


def _check_free(run: Storage, folder: str, generation: int, kind: str = "") -> None:
    """Check that a generation was given back, that its holder is dead, or that it gives way to this kind.

    Raises:
        LeaseHeld: If its holder lives, or may live.
    """
    with suppress(NotFound):
        if run.read(_beat_key(folder, generation)) == b"released\n":
            return
    holder = _holder(run, folder, generation)
    if kind and holder.kind == kind:
        return
    if holder.is_here:
        if holder.is_alive_here:
            raise _held(holder, _age(run, folder, generation))
        return
    age = _age(run, folder, generation)
    if age < EXPIRY_SECONDS:
        raise _held(holder, age)


def _held(holder: Holder, age: float) -> LeaseHeld:
    since = datetime.fromtimestamp(holder.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = f"process {holder.pid} on {holder.host}"
    if holder.is_here:
        advice = f"wait for it, or stop it (darkroom pause, or kill {holder.pid})"
    else:
        wait = max(1, round(EXPIRY_SECONDS - age))
        advice = f"wait for it or stop it there; if that machine is gone, start again in {wait} s"
    return LeaseHeld(
        f"{holder.purpose} is being run by {who} since {since}, last sign of life {age:.0f} s ago; {advice}"
    )


def read_holder(run: Storage, name: str) -> Holder | None:
    """Return who holds a lease; None if nobody does, or its holder is dead."""
    folder = f"{_FOLDER}/{name}"
    newest = _newest(run, folder)
    if newest is None:
        return None
    try:
        _check_free(run, folder, newest.generation)
    except LeaseHeld:
        return _holder(run, folder, newest.generation)
    return None


def _holder(run: Storage, folder: str, generation: int) -> Holder:
    key = _claim_key(folder, generation)
    try:
        return Holder(**run.read_object(key))
    except (TypeError, DamagedFile) as error:
        raise DataError(f"{key} in {run.url} is damaged ({error}); delete it if nothing works on this run") from None


def _newest(run: Storage, folder: str) -> Claim | None:
    claims = ((_CLAIM.fullmatch(entry.key.removeprefix(f"{folder}/")), entry) for entry in run.list(folder))
    numbered = [Claim(int(match[1]), entry.modified) for match, entry in claims if match is not None]
    return max(numbered, default=None)


def _age(run: Storage, folder: str, generation: int) -> float:
    """Return the seconds since the last sign of life, both ends of them by the store's clock."""
    probe = f"{folder}/probe-{secrets.token_hex(8)}"
    run.write(probe, b"")
    written = {dated.key: dated.written for dated in run.list_dated(folder)}
    run.delete(probe)
    signs = [written.get(key, 0.0) for key in (_claim_key(folder, generation), _beat_key(folder, generation))]
    return max(0.0, written.get(probe, 0.0) - max(signs))


def _delete_earlier(run: Storage, folder: str, generation: int) -> None:
    """Delete generations that no longer count, from the oldest, so that the highest is always there."""
    for entry in list(run.list(folder)):
        number = entry.key.removeprefix(f"{folder}/").partition(".")[0]
        if number.isdigit() and int(number) < generation:
            run.delete(entry.key)


def _claim_key(folder: str, generation: int) -> str:
    return f"{folder}/{generation:09d}.json"


def _beat_key(folder: str, generation: int) -> str:
    return f"{folder}/{generation:09d}.beat"


def _now() -> float:
    """Return seconds that never go backwards, and go on while the machine is suspended if the system can tell."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _process(pid: int) -> str | None:
    """Return what tells a process from others with the same id: when it was started; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
