"""In a pod, the launcher uses the account that may create TrainJobs, if it has one."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes import client

from components.errors import ConfigError
from pipeline.launch import api


def write_account(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "token").write_text(f"token of {name}")
    (folder / "ca.crt").write_text("certificate")
    (folder / "namespace").write_text(f"namespace-of-{name}\n")
    return folder


@pytest.fixture(autouse=True)
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(api, "LAUNCHER_ACCOUNT", tmp_path / "launcher")
    monkeypatch.setattr(api, "_POD_ACCOUNT", tmp_path / "pod")


@pytest.mark.parametrize("used", ["launcher", "pod"])
def test_the_launchers_account_goes_before_the_pods(used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_account(tmp_path / "pod", "pod")
    if used == "launcher":
        write_account(tmp_path / "launcher", "launcher")
    settings = client.Configuration()
    assert api.load_account(settings) == tmp_path / used
    assert settings.api_key == {"authorization": f"bearer token of {used}"}
    assert settings.host == "https://10.0.0.1:443"


def test_a_pod_without_an_account_is_told() -> None:
    with pytest.raises(ConfigError, match="no cluster is configured here: Service token file does not exist"):
        api.connect(None, 1.0)
