"""The images: rules that their recipes keep, and the light one built and run for real where the tools are there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
IMAGES = ("darkroom", "darkroom-gpu")
LOCKS = ROOT / "images" / "locks"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Stage(NamedTuple):
    """A stage of the Dockerfile: what it starts from, and its instructions with continued lines joined."""

    base: str
    instructions: list[tuple[str, str]]


def stages() -> dict[str, Stage]:
    text = (ROOT / "images" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    first, *rest = [(words[0], words[1] if len(words) > 1 else "") for words in lines]
    assert first == ("ARG", "BASE"), "without a default"
    named: dict[str, Stage] = {}
    for name, arguments in rest:
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            named[stage] = Stage(base, [])
        else:
            named[stage].instructions.append((name, arguments))
    return named


def instructions(stage: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage, after those of the stages that it starts from."""
    named = stages()
    base, own = named[stage]
    return [*(instructions(base) if base in named else []), *own]


def build_of(image: str) -> str:
    """Return the stage that an image's files come from."""
    [source] = [rest for name, rest in instructions(image) if name == "COPY"]
    match = re.fullmatch(r"--from=(\S+) /opt/darkroom /opt/darkroom", source)
    assert match is not None
    return match[1]


def test_the_base_is_given_and_never_a_tag_of_ours() -> None:
    named = stages()
    assert {stage.base for stage in named.values()} - named.keys() == {"${BASE}"}
    assert named.keys() >= set(IMAGES), "a target for each image"


@pytest.mark.parametrize("image", IMAGES)
def test_what_runs_is_no_root_has_no_shell_and_no_build_tools(image: str) -> None:
    stage = instructions(image)
    assert not [rest for name, rest in stage if name in ("RUN", "ADD", "HEALTHCHECK")]
    assert [rest for name, rest in stage if name == "USER"] == ["10001:10001"]
    [entry] = [rest for name, rest in stage if name == "ENTRYPOINT"]
    assert json.loads(entry) == ["darkroom"]  # the exec form, so that it is PID 1
    [command] = [rest for name, rest in stage if name == "CMD"]
    assert json.loads(command) == ["--help"]


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_written_at_run_time_lies_below_tmp(image: str) -> None:
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for name, rest in instructions(image) if name == "ENV")))
    homes = {name: value for name, value in variables.items() if re.search("HOME|CACHE", name)}
    assert {"HOME", "XDG_CACHE_HOME"} <= homes.keys()
    assert all(value.startswith("/tmp") for value in homes.values())
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("image", IMAGES)
def test_pip_takes_nothing_without_a_hash(image: str) -> None:
    runs = " && ".join(rest for name, rest in instructions(build_of(image)) if name == "RUN")
    *dependencies, own = [" ".join(text.split()) for text in re.findall(r"pip install ([^&]*)", runs)]
    assert own == "--no-deps --no-build-isolation ."
    assert dependencies == [
        "--require-hashes -r build.txt",
        f"--require-hashes --no-build-isolation -r {image}.txt",
    ]
    assert "pip check" in runs


def locked(name: str) -> dict[str, str]:
    """Return the versions of a lock by the packages' names; each must have hashes."""
    text = (LOCKS / f"{name}.txt").read_text("ascii")
    assert "make locks" in text.partition("==")[0]
    packages = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in package for package in packages)
    pairs = [re.split("==| ", package, maxsplit=2)[:2] for package in packages]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize("image", IMAGES)
def test_a_lock_holds_all_that_an_image_needs_in_the_versions_that_are_tested(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = ["pipeline"] if image == "darkroom" else ["pipeline", "train", "monitor"]
    texts = [*project["dependencies"], *(text for name in extras for text in project["optional-dependencies"][name])]
    lock = locked(image)
    assert {canonicalize_name(Requirement(text).name) for text in texts} <= lock.keys(), "run make locks"
    pairs = [line.partition("==") for line in (ROOT / "constraints.txt").read_text("ascii").splitlines()[1:]]
    tested = {canonicalize_name(name): version for name, _, version in pairs}
    assert {
        name: version for name, version in lock.items() if tested.get(canonicalize_name(name), version) != version
    } == {}
    assert ("torch" in lock) == (image == "darkroom-gpu")
    assert any(name.startswith("nvidia-") for name in lock) == (image == "darkroom-gpu")


def test_what_builds_sources_is_locked() -> None:
    assert locked("build").keys() >= {"setuptools", "wheel"}


def test_an_image_for_gpus_is_not_made_without_cuda() -> None:
    runs = [
        rest for name, rest in instructions(build_of("darkroom-gpu")) if name == "RUN" and "torch.version.cuda" in rest
    ]
    [check] = runs
    program = check.partition(" -c ")[2].strip("'")
    stand_in = (
        "import sys, types; sys.modules['torch'] = types.SimpleNamespace(version=types.SimpleNamespace(cuda={}))\n"
    )
    for cuda, code in (("None", 1), ("'13.0'", 0)):
        ran = subprocess.run([sys.executable, "-c", stand_in.format(cuda) + program], capture_output=True, check=False)
        assert ran.returncode == code


def test_only_sources_reach_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        word for image in IMAGES for name, rest in instructions(build_of(image)) if name == "COPY"
        for word in rest.split()[:-1]
    }  # fmt: skip
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def make(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe with ``true`` in the builder's place."""
    given = [f"{name}={value}" for name, value in {"BUILDER": "true", **variables}.items()]
    command = ["make", "--no-print-directory", "-C", str(ROOT / "images"), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed here")
def test_the_recipe_demands_a_registry_and_a_base_by_digest() -> None:
    pinned = "python:3.11-slim@sha256:" + "0" * 64
    assert "REGISTRY is empty" in make(BASE=pinned).stderr
    for base in ("", "python:3.11-slim", "python@sha256:abc"):
        refused = make(BASE=base, REGISTRY="registry.example/team")
        assert refused.returncode != 0
        assert "by digest" in refused.stderr
    made = make(BASE=pinned, REGISTRY="registry.example/team", TAG="v1")
    assert made.returncode == 0, made.stderr
    for image in IMAGES:
        assert f"--build-arg BASE='{pinned}'" in made.stdout
        assert f"--file Dockerfile --target {image} --tag 'registry.example/team/{image}:v1' .." in made.stdout


class Builder(NamedTuple):
    """buildah with a store of its own."""

    store: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["buildah", "--root", str(self.store / "root"), "--runroot", str(self.store / "run")]
        command += ["--storage-driver", "vfs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=1800)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """buildah, with an image ``localhost/base`` of Debian and its Python."""
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'} (apt-get install buildah debootstrap)")
    folder = tmp_path_factory.mktemp("images")
    base = folder / "base"
    wanted = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    subprocess.run(["debootstrap", *wanted, "bookworm", str(base)], check=True, capture_output=True, timeout=1800)
    if CERTIFICATES.is_file():  # a network with an authority of its own
        shutil.copy(CERTIFICATES, base / CERTIFICATES.relative_to("/"))
    recipe = folder / "Dockerfile"
    recipe.write_text("FROM scratch\nADD base /\n")
    made = Builder(folder / "store")
    made.run("bud", "--isolation=chroot", "--file", str(recipe), "--tag", "localhost/base", str(folder))
    yield made
    made.run("rmi", "--all", "--force", check=False)


@pytest.mark.proof
def test_the_light_image_is_built_and_runs_as_nobody_on_a_read_only_root(builder: Builder, tmp_path: Path) -> None:
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    given = [f"--build-arg={name}={os.environ[name]}" for name in names if name in os.environ]
    given += ["--build-arg=BASE=localhost/base", f"--build-arg=PIP_CERT={CERTIFICATES}"]
    given += ["--file", str(ROOT / "images" / "Dockerfile"), "--target", "darkroom"]
    build = ["bud", "--isolation=chroot", "--network=host", *given, "--tag", "localhost/darkroom"]
    built = builder.run(*build, str(ROOT), check=False)
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    config = json.loads(builder.run("inspect", "--type", "image", "localhost/darkroom").stdout)["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["darkroom"]

    container = builder.run("from", "localhost/darkroom").stdout.strip()

    def inside(*command: str) -> subprocess.CompletedProcess[str]:
        return builder.run("run", "--isolation=chroot", container, "--", *command, check=False)

    shown = inside("darkroom", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "darkroom" in shown.stdout
    assert inside("darkroom", "compile", "--output", "/tmp/x.yaml").returncode == 0
    assert inside("python", "-m", "pipeline.kubeflow.exporter", "--help").returncode == 0
    assert inside("python", "-c", "import os; assert os.getuid() == 10001").returncode == 0
    writable = "import os, sys; sys.exit(any(os.access(p, os.W_OK) for p in ('/', '/opt/darkroom', '/usr', '/etc')))"
    assert inside("python", "-c", writable).returncode == 0
    absent = "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ('torch', 'pip'))))"
    assert inside("python", "-c", absent).returncode == 0
    assert (
        inside(
            "python", "-c", "import shutil, sys; sys.exit(bool(shutil.which('cc') or shutil.which('gcc')))"
        ).returncode
        == 0
    )
