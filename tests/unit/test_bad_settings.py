"""Kinds of wrong recipes, settings, arguments and variables: one clear error each, at once, and never a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ConfigError
from components.processes.node import this_node
from components.train.__main__ import main as train
from pipeline.cli import main

# A recipe that needs nothing else.
GOOD = "name: mine\ningest: {source: photos}\n"
# Of processor time; most take a hundredth of that, and a hang would take for ever.
MOST_SECONDS = 5.0


def bomb() -> str:
    """Return few lines that stand for ten million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdef", "bcdefg", strict=True)]
    return "\n".join(lines) + "\n"


def merge_bomb() -> str:
    """Return few lines whose merge keys stand for ten million values."""
    lines = ["a: &a {k: 1}"]
    lines += [
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    ]
    return "\n".join(lines) + "\n"


RECIPES: dict[str, tuple[str | bytes, str]] = {
    # What YAML itself can do.
    "an alias bomb": (bomb(), "more than 20,000 values"),
    "a bomb of merge keys": (merge_bomb(), "more than 20,000 values"),
    "a list that holds itself": (GOOD + "a: &a [*a]", "*a is inside of what it stands for"),
    "a section that holds itself": ("ingest: &i {source: x, limits: *i}", "*i is inside of what it stands for"),
    "nothing but brackets": ("[" * 200_000, "inside each other"),
    "a hundred sections deep": ("{a: " * 100 + "1" + "}" * 100, "more than 32 sections"),
    "a block of lists deep": ("- " * 2_000 + "x", "more than 32 sections"),
    "half a million lines": ("x: 1\n" * 500_000, "characters, expected at most"),
    "very many values": (f"a: [{'1,' * 60_000}]", "more than 20,000 values"),
    "a section twice": (GOOD + "train: {steps: 5}\ntrain: {ranks: 2}\n", "train is there twice, first in line 3"),
    "a setting twice": (GOOD + "train: {steps: 5, steps: 6}\n", "steps is there twice, first in line 3"),
    "a name that is a number": (GOOD + "1: 2\n", "'1' is not a name"),
    "a name that is null": (GOOD + "~: 2\n", "'~' is not a name"),
    "a name that is a list": (GOOD + "? [a]\n: 2\n", "is not a name"),
    "braces in braces": (GOOD + "caption: {label_template: {{label}}}\n", "is not a name"),
    "an object of Python": ("!!python/object/apply:os.system [ls]", "!!python/object/apply:os.system is not for"),
    "another tag": (GOOD + "seed: !secret 5\n", "the tag !secret is not for settings"),
    "a wrong tag": (GOOD + "seed: !!int five\n", "this is not !!int"),
    "a wrong yes": (GOOD + "example: !!bool maybe\n", "this is not !!bool"),
    "an alias of nothing": (GOOD + "seed: *none\n", "undefined alias 'none'"),
    "an open bracket": (GOOD + "evaluate: {prompts: [a, b\n", "expected ',' or ']'"),
    "an open quote": (GOOD + "evaluate: {prompts: ['a]}\n", "unexpected end of stream"),
    "a colon in plain text": (GOOD + "publish: {description: a: b}\n", "line 3, column"),
    "tabs instead of blanks": ("name: mine\ningest:\n\tsource: photos\n", "line 3, column 1"),
    "lines that do not line up": ("name: mine\n  ingest: {source: x}\n", "line 2"),
    "two documents": (GOOD + "---\n" + GOOD, "expected a single document"),
    "a merge of text": ("<<: text\n" + GOOD, "expected a mapping or list of mappings for merging"),
    "another version of YAML": ("%YAML 9.1\n---\n" + GOOD, "version"),
    "a list": ("- a\n- b\n", "holds a list, expected a mapping"),
    "text": ("just text\n", "holds a str, expected a mapping"),
    "nothing": ("", "holds nothing, expected a mapping"),
    "only comments": ("# later\n", "holds nothing, expected a mapping"),
    "bytes of an image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not YAML"),
    "UTF-16": (GOOD.encode("utf-16"), "is not YAML"),
    "NUL": (GOOD + "seed: \0\n", "character '\\x00'"),
    # What stands in it.
    "a page of HTML": ("<!DOCTYPE html>\n<html><body>404</body></html>\n", "expected a mapping"),
    "itself as its base": ("base: mine.yaml\n", "a recipe cannot be its own base"),
    "a base that is not there": ("base: dmeo\n", "did you mean demo?"),
    "a base that is a list": ("base: [demo]\n", "expected a recipe's name"),
    "no name": ("ingest: {source: x}\n", "name: missing"),
    "a name with blanks": ("name: my cats\ningest: {source: x}\n", "'my cats' is not allowed"),
    "a section that is text": (GOOD + "train: fast\n", "train: 'fast' is not allowed: expected a section"),
    "a misspelt section": (GOOD + "trian: {steps: 5}\n", "did you mean train?"),
    "a number as text": (GOOD + "train: {steps: '5'}\n", "expected a whole number, without quotes"),
    "yes as a number": (GOOD + "train: {steps: true}\n", "train.steps: true is not allowed: expected a whole number"),
    "half a step": (GOOD + "train: {steps: 5.5}\n", "train.steps: 5.5 is not allowed: expected a whole number"),
    "a word as yes": (GOOD + "latents: {variants: {flip: yes}}\n", "'yes' is not allowed: expected true or false"),
    "a stage that is true": (GOOD + "train: {zero_stage: true}\n", "train.zero_stage: true is not allowed: expected 0"),
    "an infinite rate": (GOOD + "train: {optimizer: {learning_rate: .inf}}\n", "expected a finite number"),
    "a rate that is no number": (GOOD + "train: {optimizer: {learning_rate: .nan}}\n", "expected a finite number"),
    "a hundred thousand ranks": (GOOD + "train: {ranks: 100000}\n", "train.ranks: 100000 is not allowed"),
    "more digits than a number has": (GOOD + f"seed: {'9' * 5000}\n", "a number of 5,000 digits"),
    "a seed beyond 64 bits": (GOOD + f"seed: {2**64}\n", f"seed: {2**64} is not allowed"),
    "octal of old": (GOOD + "seed: 0755\n", "seed: '0755' is not allowed"),
    "half a character": (GOOD + 'publish: {description: "\\ud800"}\n', "publish.description: '\\ud800' is not allowed"),
    "a number as a description": (GOOD + "publish: {description: 5}\n", "expected text; put quotes around it"),
    "null as a source": ("name: mine\ningest: {source: }\n", "ingest.source: missing; folder of images"),
    "a password in an address": (
        "name: mine\ningest: {source: 's3://me:hunter2@bucket/photos'}\n",
        "ingest.source: 's3://***@bucket/photos' is not allowed: it holds credentials",
    ),
    "a signature in an address": (
        GOOD + "model: {base: 'https://host/model?X-Amz-Signature=hunter2&x=1'}\n",
        "model.base: 'https://host/model?X-Amz-Signature=***&x=1' is not allowed: it holds credentials",
    ),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins in an empty folder of its own, without anybody's credentials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    return tmp_path


def check(call: Callable[[], int], code: int, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a call ends with one error that holds a text, in time, and prints nothing else."""
    began = time.process_time()
    try:
        ended = call()
    except SystemExit as end:  # argparse
        ended = int(end.code or 0)
    seconds = time.process_time() - began
    out, err = capsys.readouterr()
    assert (ended, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert part in err
    assert "Traceback" not in err
    assert "hunter2" not in err
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert seconds < MOST_SECONDS


@pytest.mark.parametrize("kind", RECIPES)
def test_a_wrong_recipe(kind: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, part = RECIPES[kind]
    (elsewhere / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    check(lambda: main(["config", "--recipe", "mine.yaml"]), 78, part, capsys)


SETTINGS: dict[str, tuple[str, str]] = {
    "no value": ("train.steps", "expected section.key=value"),
    "no name": ("=5", "expected section.key=value"),
    "an empty section": ("train..steps=5", "expected section.key=value"),
    "sections without end": (".".join(["a"] * 5000) + "=1", "expected section.key=value"),
    "a name without end": ("x" * 100_000 + "=1", "no such setting"),
    "a value without end": ("train.steps=" + "9" * 100_000, "a number of 100,000 digits"),
    "brackets without end": ("train.steps=" + "[" * 100_000, "inside each other"),
    "text without end": ("publish.license=" + "x" * 100_000, "publish.license"),
    "an open bracket": ("evaluate.prompts=[a", "put quotes around the value if it is text"),
    "an alias": ("seed=*a", "undefined alias"),
    "a value as a section": ("seed.x=1", "seed: {'x': 1} is not allowed: expected a whole number"),
    "a section as a value": ("train=5", "train: 5 is not allowed: expected a section"),
    "bytes that are no text": ("publish.description=\udcff", "'\\udcff'"),
    "a control character": ("publish.description=\x07", "'\\x07'"),
    "a label in bare braces": ("caption.label_template={label}", "put quotes around text with braces"),
    "a template without a label": ("caption.label_template=a photo", "write {label}, with the braces"),
    "a template with another name": ("caption.label_template='{name} {label}'", "write {label}, with the braces"),
    "a template with an open brace": ("caption.label_template='{label'", "write {{ for a brace"),
    "a caption source twice": ("caption.sources=[sidecar, sidecar]", "each source can be asked once"),
    "no ending": ("ingest.extensions=[]", "at least 1 item"),
    "a step that is a word": ("train.samples.steps=[1, soon]", "train.samples.steps.1: 'soon' is not allowed"),
    "one of two rates": ("train.optimizer.betas=[0.9]", "train.optimizer.betas.1: missing"),
    "a metric that there is not": ("evaluate.promotion.required={beauty: 1}", "'beauty' is not allowed"),
    "a variable's name": ("placement.env={1st: a}", "'1st' is not allowed"),
    "a password for a proxy": (
        "placement.env={HTTPS_PROXY: 'http://me:hunter2@proxy:3128'}",
        "placement.env: it holds credentials",
    ),
    "settings that contradict each other": (
        "caption.tags.shuffled=3",
        "caption.tags.shuffled and caption.tags.dropout are for tags; set caption.tags.separator",
    ),
    "a drill for a rank that is not there": (
        "train.ranks=1",
        "launch.spot_drill.rank (1) must be below train.ranks (1)",
    ),
    "an old name": ("train.keep=3", "train.keep is now train.checkpoint.keep"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_wrong_setting(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    setting, part = SETTINGS[kind]
    check(lambda: main(["config", "--recipe", "demo", "--set", setting]), 78, part, capsys)


ARGUMENTS: dict[str, tuple[list[str], int, str]] = {
    "no verb": ([], 2, "VERB"),
    "a misspelt verb": (["stats"], 2, "did you mean status?"),
    "a verb of another": (["dataset", "run"], 2, "ls, show, verify, gc"),
    "an option that there is not": (["config", "--recipe", "demo", "--sett", "a=1", "-x"], 2, "-x"),
    "an option without its value": (["config", "--recipe"], 2, "--recipe"),
    "no recipe": (["config", "--recipe", ""], 78, "no recipe ''"),
    "a misspelt recipe": (["config", "--recipe", "sd15ful"], 78, "did you mean sd15-full?"),
    "a recipe in two lines": (["config", "--recipe", "demo\n: x\n- y"], 78, "the recipe's text is not YAML: line 2"),
    "a recipe that is not there": (["config", "--recipe", "gone.yaml"], 78, "cannot read gone.yaml"),
    "a recipe that is a folder": (["config", "--recipe", "folder.yaml"], 78, "cannot read folder.yaml"),
    "a recipe with NUL": (["config", "--recipe", "a\0b.yaml"], 78, "'a\\x00b.yaml'"),
    "a recipe of 300 letters": (["config", "--recipe", "b" * 300 + ".yaml"], 78, "cannot read bbb"),
    "half an image": (["plan", "--recipe", "demo", "--images", "0.5"], 2, "--images"),
    "fewer images than none": (["plan", "--recipe", "demo", "--images=-5"], 2, "expected a whole number from 0"),
    "more images than there are": (["plan", "--recipe", "demo", "--images", "9" * 40], 2, "expected a whole number"),
    "an assumption without a value": (["plan", "--recipe", "demo", "--assume", "mfu"], 78, "expected name=value"),
    "an assumption above one": (["plan", "--recipe", "demo", "--assume", "mfu=2"], 78, "mfu: 2 is not allowed"),
    "a misspelt assumption": (["plan", "--recipe", "demo", "--assume", "mfo=1"], 78, "did you mean mfu?"),
    "prices that are not there": (["plan", "--recipe", "demo", "--prices", "gone.yaml"], 78, "cannot read gone.yaml"),
    "retries without end": (["compile", "--retries", "1000000"], 2, "expected a whole number from 0 to 100"),
    "an image with a blank": (["compile", "--image", "a b"], 78, "image: 'a b' is not allowed"),
    "an output that is no YAML": (["compile", "--output", "out.txt"], 78, "ends in .yaml"),
    "no workdir": (["dataset", "ls", "--workdir", ""], 78, "'' is not a storage"),
    "a workdir elsewhere": (["cost", "x", "--workdir", "gopher://x"], 78, "'gopher://x' is not a storage"),
    "a workdir without a bucket": (["cost", "x", "--workdir", "s3://"], 78, "'s3://' is not a storage"),
    "a workdir that leads out": (["cost", "x", "--workdir", "s3://b/../c"], 78, "'..'"),
    "a workdir with a password": (
        ["cost", "x", "--workdir", "s3://me:hunter2@bucket/x"],
        78,
        "'s3://***@bucket/x' is not a storage: it holds credentials",
    ),
    "a run that there is not": (["cost", "x"], 78, "no run 'x'"),
    "an age without a unit": (["dataset", "gc", "--older-than", "7"], 78, "--older-than '7'"),
    "no workers": (["dataset", "verify", "--workers", "0"], 2, "expected a whole number from 1"),
    "a timeout that is no number": (["status", "--timeout", "nan"], 2, "expected a number of seconds"),
    "a timeout below zero": (["status", "--timeout=-1"], 2, "expected a number of seconds"),
    "lines below zero": (["logs", "x", "--lines=-1"], 2, "expected a whole number from 1"),
    "an address with a password": (
        ["status", "--endpoint", "http://me:hunter2@127.0.0.1:1/?sig=hunter2", "--timeout", "0.1"],
        74,
        "http://***@127.0.0.1:1/?sig=***",
    ),
    "a token that is not there": (
        ["status", "--endpoint", "http://127.0.0.1:1", "--token-file", "gone", "--timeout", "0.1"],
        74,
        "gone",
    ),
    "a time that is none": (
        ["schedule", "set", "n", "--cron", "99 3 * * *", "--recipe", "demo", "--workdir", "s3://b/x"],
        78,
        "'99 3 * * *'",
    ),
    "a schedule's name": (
        ["schedule", "set", "N N", "--cron", "0 3 * * *", "--recipe", "demo", "--workdir", "s3://b/x"],
        78,
        "'N N'",
    ),
    "a deployment that is not there": (["deploy", "--file", "gone.yaml"], 78, "cannot read gone.yaml"),
    "a local workdir for a cluster": (
        ["submit", "--recipe", "demo", "--workdir", "/here", "--endpoint", "http://127.0.0.1:1"],
        78,
        "workdir '/here'",
    ),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_wrong_arguments(kind: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, part = ARGUMENTS[kind]
    (elsewhere / "folder.yaml").mkdir()
    check(lambda: main(arguments), code, part, capsys)


VARIABLES: dict[str, tuple[dict[str, str], int, str]] = {
    "an endpoint that is no address": ({"AWS_ENDPOINT_URL": "nonsense"}, 78, "Invalid endpoint: nonsense"),
    "half an address": ({"AWS_ENDPOINT_URL": "http://[::1"}, 78, "cannot be used"),
    "an endpoint with a password": (
        {"AWS_ENDPOINT_URL": "http://me:hunter2@127.0.0.1:1"},
        78,
        "AWS_ENDPOINT_URL (http://***@127.0.0.1:1) holds credentials",
    ),
    "a region with blanks": ({"AWS_DEFAULT_REGION": "no region!"}, 78, "'no region!'"),
    "a profile that there is not": ({"AWS_PROFILE": "nobody"}, 78, "nobody"),
}


@pytest.mark.parametrize("kind", VARIABLES)
def test_wrong_variables(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    variables, code, part = VARIABLES[kind]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check(lambda: main(["dataset", "ls", "--workdir", "s3://bucket/x"]), code, part, capsys)


NODES: dict[str, tuple[dict[str, str], str]] = {
    "ranks that are no number": ({"PET_NPROC_PER_NODE": "two"}, "PET_NPROC_PER_NODE='two'"),
    "no ranks": ({"PET_NPROC_PER_NODE": "0"}, "PET_NPROC_PER_NODE='0'"),
    "a range of nodes": ({"PET_NNODES": "1:4"}, "PET_NNODES='1:4'"),
    "nodes that are no number": ({"PET_NNODES": "-2"}, "PET_NNODES='-2'"),
    "no number of its own": ({"PET_NNODES": "2"}, "PET_NODE_RANK is not set"),
    "a number too large": (
        {"PET_NNODES": "2", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "host"},
        "PET_NODE_RANK='2': expected a number from 0 to 1",
    ),
    "a port that is none": (
        {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "host", "PET_MASTER_PORT": "70000000"},
        "PET_MASTER_PORT='70000000'",
    ),
    "a hundred thousand ranks": ({"PET_NPROC_PER_NODE": "100000"}, "PET_NPROC_PER_NODE='100000'"),
}


@pytest.mark.parametrize("kind", NODES)
def test_wrong_variables_of_a_node(kind: str) -> None:
    variables, part = NODES[kind]
    with pytest.raises(ConfigError) as caught:
        this_node(variables, 1)
    assert part in str(caught.value)


STEPS: dict[str, tuple[list[str], int, str]] = {
    "a misspelt setting": (["--set", "stepz=3"], 78, "did you mean steps?"),
    "several settings, one of them wrong": (["--set", "steps=3", "ranks=0"], 78, "ranks: 0 is not allowed"),
    "settings that are not there": (["--config", "gone.json"], 78, "cannot read gone.json"),
}


@pytest.mark.parametrize("kind", STEPS)
def test_wrong_arguments_of_a_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, part = STEPS[kind]
    needed = ["--workdir", "work", "--run", "r", "--encoding-key", "k", "--base-model", "b"]
    check(lambda: train([*needed, *arguments]), code, part, capsys)
