"""Helm takes the chart as it is, refuses wrong values with a message that helps, and names things so that they last."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import lint, package
from helm_python.errors import HelmError

from pipeline.kubeflow.release import Deployment

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

CHART = Path(__file__).parents[2] / "charts" / "darkroom"


def names(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}


def test_every_preset_passes_strict_lint(every_preset: Manifest) -> None:
    report = lint(CHART, every_preset, strict=True, namespace="kubeflow")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


def test_the_defaults_pass_strict_lint() -> None:
    assert lint(CHART, {}, strict=True, namespace="kubeflow")["errors"] == []


def test_every_preset_makes_all_that_a_release_needs(every_preset: Manifest, render: Render) -> None:
    kinds = {kind for kind, _ in names(render(every_preset))}
    assert kinds >= {
        "ServiceAccount", "Role", "RoleBinding", "TrainingRuntime", "LocalQueue", "ClusterQueue", "ResourceFlavor",
        "WorkloadPriorityClass", "NetworkPolicy", "ConfigMap", "Job", "Pod", "Deployment", "PodMonitor",
        "PrometheusRule",
    }  # fmt: skip


WRONG: list[tuple[str, Manifest, str]] = [
    ("misspelt", {"trainer": {"gracePeriod": 15}}, r"/trainer.*additional properties 'gracePeriod' not allowed"),
    ("unknown section", {"treiner": {}}, r"additional properties 'treiner' not allowed"),
    ("cloud", {"cloud": "gcp"}, r"/cloud.*'none', 'gke',.*'kind'"),
    ("digest", {"image": {"digest": "sha256:abc"}}, r"/image/digest.*sha256:\[0-9a-f\]\{64\}"),
    ("no digest", {"requireDigests": True}, r"Image\.digest is empty.*make images"),
    ("no grace", {"trainer": {"gracePeriodSeconds": 4}}, r"gracePeriodSeconds.*minimum"),
    ("grace as text", {"trainer": {"gracePeriodSeconds": "15s"}}, r"/trainer/gracePeriodSeconds.*want integer"),
    ("negative restarts", {"trainer": {"maxRestarts": -1}}, r"/trainer/maxRestarts.*minimum"),
    ("local workdir", {"workdir": "/data"}, r"/workdir.*s3://"),
    ("cron of four", {"schedules": [{"name": "n", "cron": "0 3 * *", "recipe": "demo"}]}, r"/schedules/0/cron"),
    ("recipe", {"pipeline": {"recipe": "dmeo"}}, r"pipeline\.recipe is dmeo.* one of demo, digits, finetune"),
    (
        "recipe of a schedule",
        {"schedules": [{"name": "n", "cron": "@daily", "recipe": "cats"}], "recipes": {"dogs": {"base": "demo"}}},
        r"schedules, n: there is no recipe cats: expected one of demo, digits, dogs, finetune",
    ),
    ("base of a recipe", {"recipes": {"cats": {"base": "tiger"}}}, r"recipes\.cats: its base tiger is no recipe"),
    ("schedule without recipe", {"schedules": [{"name": "n", "cron": "@daily"}]}, r"/schedules/0.*recipe"),
    ("schedule twice", {"schedules": [{"name": "n", "cron": "@daily", "recipe": "demo"}] * 2}, r"names n twice"),
    ("override", {"schedules": [{"name": "n", "cron": "@daily", "recipe": "a", "overrides": ["x"]}]}, r"overrides/0"),
    ("a secret in env", {"env": {"HF_TOKEN": "hf_abc"}}, r"env\.HF_TOKEN looks like a secret"),
    ("a secret's value", {"secrets": {"s3": "AKIA/abc+"}}, r"/secrets/s3"),
    ("quantity", {"trainer": {"resources": {"limits": {"memory": "48 GB"}}}}, r"/trainer/resources/limits/memory"),
    ("endpoint", {"kfp": {"endpoint": "ml-pipeline:8888"}}, r"/kfp/endpoint.*https\?"),
    ("no flavors", {"clusterQueue": {"flavors": []}}, r"/clusterQueue/flavors.*minItems"),
    ("port", {"exporter": {"port": 80}}, r"/exporter/port.*minimum"),
    ("cidr", {"networkPolicy": {"storageCidrs": ["everywhere"]}}, r"/networkPolicy/storageCidrs/0"),
    ("cut off Kubeflow", {"networkPolicy": {"deny": "namespace"}}, r"deny is namespace, but kubeflow"),
    ("profiles", {"kfp": {"multiUser": True}}, r"kfp\.multiUser is true.*not into kubeflow"),
    ("nothing to scrape", {"monitoring": {"podMonitor": True}}, r"set exporter\.enabled"),
    ("rules without metrics", {"monitoring": {"rules": True}}, r"set exporter\.enabled"),
    ("long name", {"fullnameOverride": "x" * 41}, r"/fullnameOverride"),
]


@pytest.mark.parametrize(("values", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_value_is_refused_with_a_message_that_helps(values: Manifest, message: str, render: Render) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    assert re.search(message, str(refused.value), flags=re.DOTALL), str(refused.value)


def test_runs_outside_the_namespace_of_kubeflow_need_profiles(render: Render) -> None:
    with pytest.raises(HelmError, match=r"install into kubeflow, not into team"):
        render({}, namespace="team")
    assert render({"kfp": {"multiUser": True}}, namespace="team")


@pytest.mark.parametrize("release", ["dr", "darkroom", "a" * 53, "my-darkroom-of-the-research-department-of-the-firm"])
def test_names_hold_the_release_and_are_short_enough(release: str, everything: Manifest, render: Render) -> None:
    for kind, name in names(render(everything, name=release)):
        assert len(name) <= 63
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)
        shared = {"TrainingRuntime", "LocalQueue", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"}
        assert kind in shared or name.startswith(release[:20]), f"{kind} {name}"


def test_two_long_releases_that_begin_alike_do_not_meet(everything: Manifest, render: Render) -> None:
    one, two = (names(render(everything, name="a" * 50 + end)) for end in ("bcd", "efg"))
    kinds = {"ServiceAccount", "Role", "Job", "NetworkPolicy", "ConfigMap"}
    assert not {found for found in one & two if found[0] in kinds}


def test_an_upgrade_keeps_names_and_selectors(everything: Manifest, render: Render) -> None:
    def lasting(values: Manifest) -> list[Any]:
        manifests = render(values)
        selectors = [m["spec"]["selector"] for m in manifests if m["kind"] == "Deployment"]
        return [sorted(names(manifests)), selectors]

    later = {**everything, "image": {"repository": "elsewhere/darkroom", "digest": "sha256:" + "c" * 64}}
    assert lasting(everything) == lasting(later)


def test_the_hook_deploys_and_withdraws_what_the_values_say(everything: Manifest, render: Render) -> None:
    manifests = render(everything)
    [config] = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "dr-darkroom-deploy"]
    deploy, withdraw = (yaml.safe_load(config["data"][name]) for name in ("deploy.yaml", "withdraw.yaml"))
    assert deploy["image"] == "registry.example/darkroom@sha256:" + "a" * 64
    assert deploy["gpu_image"] == "registry.example/darkroom-gpu@sha256:" + "b" * 64
    assert deploy["service_account"] == "dr-darkroom-pipeline"
    assert deploy["schedules"] == [
        {"name": "nightly", "cron": "0 0 3 * * *", "recipe": "demo", "workdir": "s3://bucket/darkroom", "source": "",
         "overrides": ["train.steps=10"], "enabled": True},
        {"name": "weekly", "cron": "@weekly", "recipe": "demo", "workdir": "s3://bucket/darkroom",
         "source": 's3://b/"odd"', "overrides": [], "enabled": False},
    ]  # fmt: skip
    assert withdraw == {**deploy, "schedules": [], "withdraw": True}
    read = [Deployment.parse(values) for values in (deploy, withdraw)]  # as `darkroom deploy` does
    assert [schedule.cron for schedule in read[0].schedules] == ["0 0 3 * * *", "0 0 0 * * 0"]
    assert read[0].owner == read[1].owner == "dr-darkroom-pipeline"
    hooks = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "Job"}
    when = {name: m["metadata"]["annotations"]["helm.sh/hook"] for name, m in hooks.items()}
    assert when == {
        "dr-darkroom-deploy": "post-install,post-upgrade,post-rollback", "dr-darkroom-withdraw": "pre-delete",
        "dr-darkroom-end-trainings": "pre-delete",
    }  # fmt: skip
    for name, file in (("deploy", "deploy.yaml"), ("withdraw", "withdraw.yaml")):
        [container] = hooks[f"dr-darkroom-{name}"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["darkroom", "deploy", "--file", f"/etc/darkroom/{file}"]


def test_cron_has_five_fields_as_everywhere_or_six(render: Render) -> None:
    crons = {"0 3 * * *": "0 0 3 * * *", "0 30 4 * * mon": "0 30 4 * * mon", "@hourly": "0 0 * * * *"}
    schedules = [{"name": f"n{n}", "cron": cron, "recipe": "demo"} for n, cron in enumerate(crons)]
    schedules.append({"name": "text", "cron": "@daily", "recipe": "base: demo\nname: text\n"})
    [config] = [m for m in render({"schedules": schedules}) if m["metadata"]["name"].endswith("-deploy")
                and m["kind"] == "ConfigMap"]  # fmt: skip
    deployment = Deployment.parse(yaml.safe_load(config["data"]["deploy.yaml"]))
    assert [schedule.cron for schedule in deployment.schedules[:-1]] == list(crons.values())


def test_other_accounts_get_the_role_of_a_run_and_no_more(render: Render) -> None:
    bindings = {m["metadata"]["name"]: m for m in render({"pipeline": {"accounts": ["pipeline-runner"]}})
                if m["kind"] == "RoleBinding"}  # fmt: skip
    assert [one["name"] for one in bindings["dr-darkroom-kfp"]["subjects"]] == [
        "dr-darkroom-pipeline", "pipeline-runner"
    ]  # fmt: skip
    assert [one["name"] for one in bindings["dr-darkroom-launcher"]["subjects"]] == ["dr-darkroom-launcher"]


def test_recipes_of_ones_own_stand_beside_and_above_those_that_come_along(render: Render) -> None:
    own = {"demo": {"name": "other"}, "mine": {"name": "mine", "train": {"steps": 3}}}
    [config] = [m for m in render({"recipes": own}) if m["metadata"]["name"].endswith("-recipes")]
    found = {name: yaml.safe_load(text) for name, text in config["data"].items()}
    assert found["demo.yaml"] == {"name": "other"}
    assert found["mine.yaml"] == own["mine"]
    [shipped] = [m for m in render({}) if m["metadata"]["name"].endswith("-recipes")]
    recipes = CHART.parents[1] / "pipeline" / "recipes"
    assert shipped["data"] == {path.name: path.read_text("utf-8") for path in recipes.glob("*.yaml")}


def test_prices_of_ones_own_replace_those_that_come_along(render: Render, tmp_path: Path) -> None:
    from pipeline.cost.prices import read_prices

    def listed(values: Manifest) -> str:
        [config] = [m for m in render(values) if m["metadata"]["name"].endswith("-prices")]
        text: str = config["data"]["prices.yaml"]
        return text

    assert listed({}) == (CHART.parents[1] / "pipeline" / "cost" / "prices.yaml").read_text("utf-8")
    name, known = next((name, one) for name, one in read_prices().instances.items() if one.spot is not None)
    mine: Manifest = {"sources": {"bill": {"url": "https://bill.example", "date": "2026-11-01"}}}
    mine["instances"] = {name: {"spot": {"usd": 0.25, "source": "bill"}}}
    (tmp_path / "prices.yaml").write_text(listed({"prices": mine}), "utf-8")
    changed = read_prices(str(tmp_path / "prices.yaml")).instances
    spot = changed[name].spot
    assert spot is not None
    assert spot.usd == 0.25
    assert changed[name].on_demand == known.on_demand
    assert {other: changed[other] for other in changed if other != name} == {
        other: one for other, one in read_prices().instances.items() if other != name
    }


def test_a_package_holds_the_recipes_themselves(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(package(CHART, destination=tmp_path)) as chart:
        member = chart.getmember("darkroom/files/recipes/demo.yaml")
        assert member.isfile()
        assert member.size > 100
