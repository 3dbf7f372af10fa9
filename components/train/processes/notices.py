"""Notices that a cloud is about to reclaim this node, read from its metadata server.

AWS gives 120 s, Azure at least 30 s, Google Cloud 30 s. Kubernetes mostly sends its pods SIGTERM; these pollers are for
machines without Kubernetes, and for clusters whose nodes are not drained on a notice. Pods reach the metadata server of
AWS only if the hop limit is 2. On GKE with Workload Identity pods do not see ``instance/preempted``
(https://github.com/banzaicloud/preemption-exporter/issues/3); there SIGTERM is the notice.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Literal
from urllib.parse import urlsplit

from components.errors import DarkroomError

ReadNotice = Callable[[], str | None]

_TIMEOUT_SECONDS = 2.0
_MAX_BYTES = 1 << 16
_TOKEN_SECONDS = 21_600


class MetadataError(DarkroomError):
    """The metadata server gave an answer that means neither yes nor no; it never leaves the poller."""


class Metadata:
    """A metadata server: plain HTTP, never through a proxy, and no redirect is followed.

    Args:
        address: Such as ``http://169.254.169.254``.
        timeout: Seconds to wait for it.
    """

    def __init__(self, address: str, timeout: float = _TIMEOUT_SECONDS) -> None:
        self._address = address
        self._timeout = timeout

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
        """Return the status and the text of an answer."""
        url = urlsplit(self._address)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self._timeout)
        with closing(connection):
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_BYTES).decode()

    def get(self, path: str, headers: Mapping[str, str]) -> str:
        """Return the text under a path that must exist."""
        status, text = self.ask(path, headers)
        if status != 200:
            raise MetadataError(f"GET {path}: status {status}, expected 200")
        return text.strip()


class Aws:
    """EC2's instance metadata service, version 2.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html and
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html

    Args:
        metadata: The server.
        rebalance: Whether a rebalance recommendation is a notice. One that exists at the first request is not: it
            stays as long as the machine does, and a training started in spite of it would stop again and again.
    """

    def __init__(self, metadata: Metadata, rebalance: bool) -> None:
        self._metadata = metadata
        self._rebalance = rebalance
        self._token: str | None = None
        self._earlier: list[Any] = []

    def read_notice(self) -> str | None:
        """Return what the cloud is about to do, or None."""
        action = self._read("spot/instance-action")
        if action is not None:
            return f"aws: {_text(action, 'action')} at {action.get('time')}"
        if not self._rebalance:
            return None
        advice = self._read("events/recommendations/rebalance")
        time = None if advice is None else _text(advice, "noticeTime")
        if not self._earlier:
            self._earlier.append(time)
        return None if time in (None, *self._earlier) else f"aws: rebalance recommended at {time}"

    def _read(self, item: str) -> dict[str, Any] | None:
        path = f"/latest/meta-data/{item}"
        status, text = self._ask(path)
        if status == 401:  # the token has expired
            self._token = None
            status, text = self._ask(path)
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"GET {path}: status {status}, expected 200 or 404")
        return _mapping(text)

    def _ask(self, path: str) -> tuple[int, str]:
        if self._token is None:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            status, text = self._metadata.ask("/latest/api/token", headers, "PUT")
            if status != 200:
                raise MetadataError(f"PUT /latest/api/token: status {status}, expected 200")
            self._token = text.strip()
        return self._metadata.ask(path, {"X-aws-ec2-metadata-token": self._token})


class Gcp:
    """Compute Engine's metadata server.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption

    Args:
        metadata: The server.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def read_notice(self) -> str | None:
        """Return what the cloud is about to do, or None."""
        path = "/computeMetadata/v1/instance/preempted"
        # Every machine has it, spot or not: unlike at AWS, 404 means that something else answers.
        text = self._metadata.get(path, {"Metadata-Flavor": "Google"})
        if text not in ("TRUE", "FALSE"):
            raise MetadataError(f"GET {path}: {text[:100]!r}, expected TRUE or FALSE")
        return "gcp: preempted" if text == "TRUE" else None


class Azure:
    """Azure's Scheduled Events; the machines of a scale set see each other's events, too.

    https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events

    Args:
        metadata: The server. It may take two minutes for the first request; until then requests time out.
    """

    _HEADERS: Mapping[str, str] = {"Metadata": "true"}

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def read_notice(self) -> str | None:
        """Return what the cloud is about to do, or None."""
        text = self._metadata.get("/metadata/scheduledevents?api-version=2020-07-01", self._HEADERS)
        events = _mapping(text).get("Events")
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise MetadataError(f"scheduled events: {events!r}, expected a list of objects")
        evictions = [event for event in events if event.get("EventType") == "Preempt"]
        mine = next((event for event in evictions if self._is_meant(event)), None)
        return None if mine is None else f"azure: eviction not before {mine.get('NotBefore') or 'now'}"

    def _is_meant(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event is about this machine, which it is if the machine's name cannot be read."""
        try:
            name = self._metadata.get(
                "/metadata/instance/compute/name?api-version=2021-02-01&format=text", self._HEADERS
            )
        except (MetadataError, OSError, http.client.HTTPException):
            return True
        names = event.get("Resources")
        return not isinstance(names, list) or name.lower() in [str(one).lower() for one in names]


class Poller:
    """Asks for a notice again and again, in a thread, until there is one.

    Args:
        read_notice: Asks once.
        act: Called with the notice.
        trouble: Called with the reason if asking fails: once, and again if it fails after it had worked.
        every: Seconds between two requests.
    """

    def __init__(
        self, read_notice: ReadNotice, act: Callable[[str], None], trouble: Callable[[str], None], every: float
    ) -> None:
        self._read_notice = read_notice
        self._act = act
        self._trouble = trouble
        self._every = every
        self._works = True

    def start(self) -> None:
        """Ask from now on, in a thread."""
        threading.Thread(target=self._run, name="notices", daemon=True).start()

    def poll(self) -> bool:
        """Ask once, and tell whether there was a notice; whatever the server does, nothing is raised."""
        try:
            notice = self._read_notice()
        except Exception as error:  # a notice is a bonus: no answer whatsoever may end the training
            if self._works:
                self._trouble(str(error) or type(error).__name__)
            self._works = False
            return False
        self._works = True
        if notice is not None:
            self._act(notice)
        return notice is not None

    def _run(self) -> None:
        pause = threading.Event()
        while not self.poll():
            pause.wait(self._every)


def source(cloud: Literal["aws", "gcp", "azure"], address: str, rebalance: bool) -> ReadNotice:
    """Return the function that asks for a cloud's notices.

    Args:
        cloud: The cloud of this machine.
        address: The address of the metadata server.
        rebalance: Whether AWS's recommendation to rebalance counts as a notice.
    """
    metadata = Metadata(address)
    if cloud == "aws":
        return Aws(metadata, rebalance).read_notice
    return Gcp(metadata).read_notice if cloud == "gcp" else Azure(metadata).read_notice


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise MetadataError(f"{text[:100]!r} is not a JSON object")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    if not isinstance(values.get(name), str):
        raise MetadataError(f"{str(values)[:100]} has no {name}")
    return str(values[name])
