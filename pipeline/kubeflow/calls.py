"""Calls of Kubeflow's API: repeated while it does not answer, with errors that say what to do if it rejects them."""

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

# Environment variables for credentials, if there is no file with them.
TOKEN, COOKIES = "DARKROOM_KFP_TOKEN", "DARKROOM_KFP_COOKIES"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_AWAY = (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)


class KubeflowAway(StorageError):
    """Kubeflow's API cannot be reached or is overloaded; a retry may help."""


class Exists(ConfigError):
    """An object of that name exists already."""


class RetryingCaller:
    """Repeats a call while the API does not answer.

    Args:
        seconds: How long to repeat one call.
        sleep: Waits so many seconds.
        clock: Seconds that never go backwards.
    """

    def __init__(self, seconds: float, sleep: Callable[[float], object], clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._sleep = sleep
        self._clock = clock

    def call(self, what: str, call: Callable[[], T], again: bool = True) -> T:
        """Return what a call returns.

        Args:
            what: What the call does, for messages.
            call: The call.
            again: Whether it may be repeated: whether doing it twice does no harm.

        Raises:
            NotFound: If the API has no object of that name.
            ConfigError: If it rejects the call.
            KubeflowAway: If it does not answer in time.
        """
        began, pause = self._clock(), _FIRST_PAUSE
        while True:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # the client prints links of its own
                    return call()
            except _AWAY as error:
                problem = _reason(error)
            except kfp_server_api.ApiException as error:
                if not _is_temporary(error.status):
                    raise _rejection(what, error) from None
                problem = f"{error.status} {_message(error)}"
            if not again or self._clock() - began + pause > self._seconds:
                raise KubeflowAway(
                    f"cannot {what}: {problem}; check the address (--endpoint) and whether Kubeflow runs, and try again"
                )
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _rejection(what: str, error: kfp_server_api.ApiException) -> DarkroomError:
    """Return the error for a call that the API rejected, with what to do about it."""
    problem = f"Kubeflow refuses to {what}: {error.status} {_message(error)}"
    if error.status == 401:
        return ConfigError(f"{problem}; log in: --token-file, or {TOKEN} or {COOKIES} in the environment")
    if error.status == 403:
        return ConfigError(f"{problem}; ask for rights in this namespace, or name your own (--namespace)")
    if error.status == 404:
        return NotFound(f"{problem}; darkroom status and darkroom schedule ls list what exists")
    if error.status == 409:
        return Exists(f"{problem}; choose another name")
    return ConfigError(problem)


def _is_temporary(status: int | None) -> bool:
    """Tell whether a status means that the API is overloaded or not up yet, and not that it rejects the call."""
    return status in (None, 0, 408, 429) or (status is not None and status >= 500)


def _message(error: kfp_server_api.ApiException) -> str:
    """Return the API's own message, on one line."""
    try:
        body = json.loads(error.body or "")
        message = str(body.get("message") or body.get("error") or error.reason)
    except (ValueError, AttributeError):
        message = str(error.reason)
    return " ".join(message.split())[:500]


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).rpartition(">: ")[2].split())[:300] or type(error).__name__
