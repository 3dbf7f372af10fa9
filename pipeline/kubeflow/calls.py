"""Calls of Kubeflow's API: again while it is away, and as errors that say what to do where it refuses."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from typing import TypeVar

import kfp_server_api
import urllib3

from components.errors import ConfigError, DarkroomError, NotFound, StorageError

T = TypeVar("T")

# The environment's variables that hold credentials where no file does.
TOKEN, COOKIES = "DARKROOM_KFP_TOKEN", "DARKROOM_KFP_COOKIES"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_AWAY = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)


class KubeflowAway(StorageError):
    """Kubeflow's API cannot be reached or is overloaded; a retry may help."""


class Exists(ConfigError):
    """There is one of that name."""


class Patience:
    """Calls again what is away; how long, is counted for each call."""

    def __init__(self, seconds: float, sleep: Callable[[float], object], clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._sleep = sleep
        self._clock = clock

    def call(self, what: str, call: Callable[[], T], again: bool = True) -> T:
        """Return what a call returns; ``again`` says that doing it twice does no harm.

        Raises:
            NotFound: Where the API knows nothing of that name.
            ConfigError: Where it refuses.
            KubeflowAway: Where it does not answer in time.
        """
        began, pause = self._clock(), _FIRST_PAUSE
        while True:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the client prints links of its own
                    return call()
            except _AWAY as error:
                problem = _reason(error)
            except kfp_server_api.ApiException as error:
                if not _is_passing(error.status):
                    raise _refused(what, error) from None
                problem = f"{error.status} {_said(error)}"
            if not again or self._clock() - began + pause > self._seconds:
                raise KubeflowAway(
                    f"cannot {what}: {problem}; check the address (--endpoint) and whether Kubeflow runs, and try again"
                )
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _refused(what: str, error: kfp_server_api.ApiException) -> DarkroomError:
    """Return the API's refusal with what to do about it."""
    said = f"Kubeflow refuses to {what}: {error.status} {_said(error)}"
    if error.status == 401:
        return ConfigError(f"{said}; log in: --token-file, or {TOKEN} or {COOKIES} in the environment")
    if error.status == 403:
        return ConfigError(f"{said}; ask for rights in this namespace, or say which is yours (--namespace)")
    if error.status == 404:
        return NotFound(f"{said}; darkroom status and darkroom schedule ls list what there is")
    if error.status == 409:
        return Exists(f"{said}; choose another name")
    return ConfigError(said)


def _is_passing(status: int | None) -> bool:
    """Tell whether an answer says that the API is overloaded or not up yet, and not that it refuses."""
    return status in (None, 0, 408, 429) or (status is not None and status >= 500)


def _said(error: kfp_server_api.ApiException) -> str:
    """Return the API's own words, on one line."""
    try:
        told = json.loads(error.body or "")
        words = str(told.get("message") or told.get("error") or error.reason)
    except (ValueError, AttributeError):
        words = str(error.reason)
    return " ".join(words.split())[:500]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).rpartition(">: ")[2].split())[:300] or type(error).__name__
