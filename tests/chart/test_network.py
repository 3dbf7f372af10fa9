"""What may talk to what, judged as a network plugin judges policies: by the labels of real pods."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


class Peer(NamedTuple):
    """Somebody at the other end: a pod in a namespace, or an address outside."""

    namespace: str = ""
    labels: dict[str, str] = {}  # noqa: RUF012 - never changed
    address: str = ""


OURS = {
    "app.kubernetes.io/name": "darkroom",
    "app.kubernetes.io/instance": "dr",
    "app.kubernetes.io/part-of": "darkroom",
}
TRAINER, DEPLOY, EXPORTER, END = (
    {**OURS, "app.kubernetes.io/component": component} for component in ("train", "deploy", "exporter", "end")
)
STEP = {
    "app.kubernetes.io/part-of": "darkroom",
    "app.kubernetes.io/component": "pipeline",
    "pipelines.kubeflow.org/v2_component": "true",
}
DRIVER = {"pipelines.kubeflow.org/v2_component": "true"}
STRANGER = {"app": "notebook"}

DNS, STORE, API = Peer("kube-system"), Peer(address="52.218.1.1"), Peer(address="10.96.0.1")
KFP, METADATA = Peer("kubeflow", {"app": "ml-pipeline"}), Peer(address="169.254.169.254")


def chosen(selector: Manifest, labels: dict[str, str]) -> bool:
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def admits(rule: Manifest, way: str, home: str, peer: Peer, port: int) -> bool:
    ports, peers = rule.get("ports"), rule.get(way)
    return (not ports or port in [entry["port"] for entry in ports]) and (
        not peers or any(is_peer(entry, home, peer) for entry in peers)
    )


def is_peer(entry: Manifest, home: str, peer: Peer) -> bool:
    if "ipBlock" in entry:
        block = entry["ipBlock"]
        inside = [ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", ()))]
        address = ipaddress.ip_address(peer.address) if peer.address else None
        return address is not None and address in inside[0] and not any(address in hole for hole in inside[1:])
    if peer.address:
        return False
    namespaces = entry.get("namespaceSelector")
    named = {"kubernetes.io/metadata.name": peer.namespace}
    here = chosen(namespaces, named) if namespaces is not None else peer.namespace == home
    return here and chosen(entry.get("podSelector", {}), peer.labels)


class Network(NamedTuple):
    """All policies of a release's namespace."""

    policies: list[Manifest]
    home: str

    def allows(self, labels: dict[str, str], way: str, peer: Peer, port: int) -> bool:
        kind = "Egress" if way == "to" else "Ingress"
        bound = [p["spec"] for p in self.policies if chosen(p["spec"]["podSelector"], labels)]
        bound = [spec for spec in bound if kind in spec["policyTypes"]]
        return not bound or any(
            admits(rule, way, self.home, peer, port) for spec in bound for rule in spec.get(kind.lower(), ())
        )


@pytest.fixture(scope="module", params=["release", "namespace"])
def network(request: pytest.FixtureRequest, render: Render) -> Network:
    home = "kubeflow" if request.param == "release" else "team"
    values = {
        "networkPolicy": {"deny": request.param},
        "kfp": {"multiUser": home == "team"},
        "exporter": {"enabled": True},
    }
    manifests = render(values, namespace=home)
    return Network([m for m in manifests if m["kind"] == "NetworkPolicy"], home)


@pytest.mark.parametrize("labels", [TRAINER, DEPLOY, EXPORTER, STEP], ids=["trainer", "deploy", "exporter", "step"])
def test_nothing_is_allowed_that_is_not_named(labels: dict[str, str], network: Network) -> None:
    assert not network.allows(labels, "to", Peer("elsewhere", STRANGER), 8080)
    assert not network.allows(labels, "from", Peer("elsewhere", STRANGER), 8080)
    assert not network.allows(labels, "from", Peer(network.home, STRANGER), 29500)
    assert not network.allows(labels, "to", Peer(address="52.218.1.1"), 22)
    assert not network.allows(labels, "to", METADATA, 80)


@pytest.mark.parametrize("labels", [TRAINER, DEPLOY, EXPORTER, STEP], ids=["trainer", "deploy", "exporter", "step"])
def test_all_find_names_and_stores(labels: dict[str, str], network: Network) -> None:
    assert network.allows(labels, "to", DNS, 53)
    assert network.allows(labels, "to", STORE, 443)


def test_ranks_talk_to_ranks_at_any_port(network: Network) -> None:
    for port in (29500, 40123):
        assert network.allows(TRAINER, "to", Peer(network.home, TRAINER), port)
        assert network.allows(TRAINER, "from", Peer(network.home, TRAINER), port)
    other = {**TRAINER, "app.kubernetes.io/instance": "another"}
    assert not network.allows(TRAINER, "from", Peer(network.home, other), 29500)


def test_steps_and_hooks_that_need_it_reach_the_kubernetes_api_beyond_https(network: Network) -> None:
    assert network.allows(STEP, "to", API, 6443)
    assert network.allows(END, "to", API, 6443), "the hook that ends trainings"
    for labels in (TRAINER, DEPLOY, EXPORTER):
        assert not network.allows(labels, "to", API, 6443)


def test_the_hook_and_the_steps_reach_kubeflow_and_the_trainer_does_not(network: Network) -> None:
    for labels in (DEPLOY, STEP):
        assert network.allows(labels, "to", KFP, 8888)
    assert not network.allows(TRAINER, "to", KFP, 8888)
    assert not network.allows(EXPORTER, "to", KFP, 8888)


def test_the_exporter_is_scraped_by_prometheus_alone(network: Network) -> None:
    assert network.allows(EXPORTER, "from", Peer("monitoring", {"app": "prometheus"}), 9464)
    assert not network.allows(EXPORTER, "from", Peer("elsewhere", {"app": "prometheus"}), 9464)


def test_others_in_the_namespace_are_left_alone_unless_all_is_denied(network: Network) -> None:
    whole = network.home == "team"
    assert network.allows(STRANGER, "to", Peer("elsewhere", STRANGER), 8080) is not whole
    for peer, port in ((KFP, 8887), (KFP, 8080), (API, 6443), (DNS, 53)):  # Kubeflow's own pods of a run live on
        assert network.allows(DRIVER, "to", peer, port)


@pytest.mark.parametrize(
    ("name", "server"), [("gke", ("169.254.169.252", 988)), ("eks", ("169.254.170.23", 80))]
)  # fmt: skip
def test_a_cloud_s_identity_server_is_reached(
    name: str, server: tuple[str, int], values_with: Callable[..., Manifest], render: Render
) -> None:
    values = values_with(name, image={"digest": "sha256:" + "a" * 64}, gpuImage={"digest": "sha256:" + "b" * 64})
    network = Network([m for m in render(values) if m["kind"] == "NetworkPolicy"], "kubeflow")
    assert network.allows(TRAINER, "to", Peer(address=server[0]), server[1])


@pytest.mark.parametrize("name", ["eks", "aks"])
def test_trainers_alone_ask_whether_their_machine_goes(
    name: str, values_with: Callable[..., Manifest], render: Render
) -> None:
    values = values_with(name, image={"digest": "sha256:" + "a" * 64}, gpuImage={"digest": "sha256:" + "b" * 64})
    network = Network([m for m in render(values) if m["kind"] == "NetworkPolicy"], "kubeflow")
    assert network.allows(TRAINER, "to", METADATA, 80)
    assert not network.allows(TRAINER, "to", METADATA, 443)
    assert not network.allows(TRAINER, "to", Peer(address="169.254.169.253"), 80)
    for labels in (DEPLOY, EXPORTER, STEP):
        assert not network.allows(labels, "to", METADATA, 80)


def test_policies_can_be_left_to_others(render: Render) -> None:
    assert not [m for m in render({"networkPolicy": {"create": False}}) if m["kind"] == "NetworkPolicy"]
