"""What no source may do: load a pickle, run a shell, build objects out of YAML, evaluate text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("components/**/*.py")])

# Each can run what a file says.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tarfile.extractall",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
ARGUMENTS = {("allow_pickle", True), ("shell", True), ("trust_remote_code", True), ("weights_only", False)}
# Without the argument both libraries fall back to pickled weights; what these load has no weights.
WITHOUT_WEIGHTS = re.compile(r"(tokenizer|processor|scheduler|config)$", re.IGNORECASE)


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for such an expression; an unnamed part is empty."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import(names=aliases):
                yield from (f"{line}: import {a.name}" for a in aliases if a.name.partition(".")[0] in MODULES)
                yield from (f"{line}: {a.name} under another name" for a in aliases if a.asname and is_watched(a.name))
            case ast.ImportFrom(module=str(module), names=aliases):
                if module.partition(".")[0] in MODULES:
                    yield f"{line}: from {module}"
                yield from (f"{line}: {module}.{a.name}" for a in aliases if f"{module}.{a.name}" in CALLS)
            case ast.Call(func=function, keywords=keywords):
                yield from (f"{line}: {found}" for found in wrong_calls(dotted(function), keywords))


def is_watched(module: str) -> bool:
    return any(call.startswith(f"{module}.") for call in CALLS)


def wrong_calls(name: str, keywords: list[ast.keyword]) -> Iterator[str]:
    if name in CALLS:
        yield name
    given = {keyword.arg: keyword.value for keyword in keywords}
    for argument, value in ARGUMENTS:
        found = given.get(argument)
        if found is not None and not (isinstance(found, ast.Constant) and found.value is not value):
            yield f"{argument} that is not {not value}"
    receiver, _, method = name.rpartition(".")
    if method == "from_pretrained" and not WITHOUT_WEIGHTS.search(receiver):
        safe = given.get("use_safetensors")
        if not (isinstance(safe, ast.Constant) and safe.value is True):
            yield f"{name} without use_safetensors=True"


def test_no_source_does_anything_forbidden() -> None:
    broken = {str(path.relative_to(ROOT)): list(offences(path.read_text("utf-8"))) for path in SOURCES}
    assert {path: lines for path, lines in broken.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, joblib",
        "from cloudpickle import dumps",
        "torch.load(path)",
        "from torch import load",
        "import yaml as y",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=chosen)",
        "os.system('ls')",
        "eval('1')",
        "def f():\n    exec(text)",
        "np.load(file, allow_pickle=True)",
        "AutoModel.from_pretrained(place)",
        "diffusers.AutoencoderKL.from_pretrained(place, use_safetensors=False)",
        "AutoProcessor.from_pretrained(place, trust_remote_code=True)",
    ],
)
def test_what_is_forbidden_is_found(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "yaml.safe_load(text)",
        "subprocess.run(command, shell=False)",
        "np.load(file, allow_pickle=False)",
        "AutoProcessor.from_pretrained(place, trust_remote_code=False)",
        "CLIPTokenizer.from_pretrained(place)",
        "diffusers.AutoencoderKL.from_pretrained(place, use_safetensors=True)",
        "'never use pickle or shell=True'",
    ],
)
def test_what_is_allowed_is_not(source: str) -> None:
    assert list(offences(source)) == []
