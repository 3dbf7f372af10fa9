"""Models: one name for wherever they are, and a clear word where they cannot be used."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import CLIPTokenizer

from components.autoencoder.scratch import build_scratch, build_tokenizer
from components.digests import sha256
from components.errors import ConfigError, DamagedFile, DataError, StorageError
from components.model.architecture import Architecture, TextArchitecture
from components.model.locations import (
    check_parts,
    encodable,
    fetch,
    is_hub_name,
    load_autoencoder,
    load_text_encoder,
    pin,
    reproducible,
    select_device,
)
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.models import commit_all, flip, forget_checks

TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4, 4], "cross_attention": [True, False], "norm_groups": 2, "attention_heads": 2},
    }
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["a red square"], seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def upload(folder: Path, storage: Storage) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.upload(path.relative_to(folder).as_posix(), path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_is_used_where_it_is(base: Path, workdir: Storage) -> None:
    assert fetch(str(base), workdir) == base
    assert pin(str(base), base) == str(base)


def test_model_of_the_workdir_counts_once_it_is_committed(base: Path, workdir: Storage, tmp_path: Path) -> None:
    upload(base, workdir.child("models/base/abc"))
    with pytest.raises(DataError, match="models/base/abc"):
        fetch("workdir:models/base/abc", workdir)
    commit_all(workdir.child("models/base/abc"))
    assert fetch("workdir:models/base/abc", workdir) == tmp_path / "work/models/base/abc"
    assert pin("workdir:models/base/abc", tmp_path) == "workdir:models/base/abc"


def test_model_of_a_store_is_downloaded_once_and_never_stale(base: Path, workdir: Storage, cache: Path) -> None:
    store = open_storage("memory://test-models/base")
    upload(base, store)
    first = fetch("memory://test-models/base", workdir)
    assert contents(first) == contents(base)
    marker = first / "here-before"
    marker.touch()
    assert fetch("memory://test-models/base", workdir) == first
    assert marker.exists()
    store.write("unet/config.json", b"{}")
    second = fetch("memory://test-models/base", workdir)
    assert second != first
    assert (second / "unet/config.json").read_bytes() == b"{}"
    assert all(path.is_relative_to(cache) for path in (first, second))


def test_model_of_a_workdir_in_a_store_is_downloaded(base: Path, cache: Path) -> None:
    workdir = open_storage("memory://test-workdir")
    storage = workdir.child("models/base/abc")
    upload(base, storage)
    commit_all(workdir.child("models/base/abc"))
    folder = fetch("workdir:models/base/abc", workdir)
    assert contents(folder) == {entry.key: storage.read(entry.key) for entry in storage.list()}


@pytest.mark.parametrize(
    "uri", ["nothing", "no/such/folder", "/no/such/folder", "memory://test-models/empty", "ftp://host/x", "a b/c", ""]
)
def test_name_that_is_not_valid_is_rejected(workdir: Storage, cache: Path, uri: str) -> None:
    with pytest.raises(ConfigError):
        fetch(uri, workdir)


def test_cache_of_somebody_else_is_not_used(workdir: Storage, cache: Path, tmp_path: Path) -> None:
    open_storage("memory://test-models/trap").write("model_index.json", b"{}")
    fetch("memory://test-models/trap", workdir)
    (folder,) = cache.iterdir()
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(StorageError, match="TMPDIR"):
        fetch("memory://test-models/trap", workdir)


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache, as a download of one repository leaves it, and no network."""
    commit = "1234567890abcdef1234567890abcdef12345678"
    repository = tmp_path / "hub/models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / commit


def test_model_of_the_hub_is_pinned_to_its_commit(hub: Path, workdir: Storage) -> None:
    folder = fetch("someone/model", workdir)
    assert folder == hub
    pinned = pin("someone/model", folder)
    assert pinned == f"someone/model@{hub.name}"
    assert fetch(pinned, workdir) == hub
    assert pin(pinned, folder) == pinned


def test_model_that_the_hub_cannot_give_is_named(hub: Path, workdir: Storage) -> None:
    with pytest.raises(StorageError, match="someone/other"):
        fetch("someone/other", workdir)


def test_hub_names_differ_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("someone/model")
    assert is_hub_name("someone/model@refs/pr/1")
    (tmp_path / "someone/model").mkdir(parents=True)
    assert not is_hub_name("someone/model")
    assert not is_hub_name("s3://bucket/model")
    assert not is_hub_name("workdir:models/base/abc")


def test_whole_model_passes(base: Path) -> None:
    check_parts(base, "base")


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part_is_named(base: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(base, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / part)
    with pytest.raises(ConfigError, match=f"has no {part}"):
        check_parts(tmp_path / "copy", "copy")
    index = json.loads((base / "model_index.json").read_text())
    del index[part]
    (tmp_path / "copy" / part).mkdir()
    (tmp_path / "copy/model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=f"has no {part}"):
        check_parts(tmp_path / "copy", "copy")


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("vae", ["diffusers", "AutoencoderDC"], "AutoencoderDC"),
        ("unet", ["diffusers", "SD3Transformer2DModel"], "SD3Transformer2DModel"),
        ("text_encoder_2", ["transformers", "CLIPTextModelWithProjection"], "SDXL"),
    ],
)
def test_model_of_another_kind_is_named(base: Path, tmp_path: Path, part: str, entry: list[str], message: str) -> None:
    shutil.copytree(base, tmp_path / "copy")
    index = json.loads((base / "model_index.json").read_text())
    (tmp_path / "copy/model_index.json").write_text(json.dumps({**index, part: entry}))
    with pytest.raises(ConfigError, match=message):
        check_parts(tmp_path / "copy", "copy")


@pytest.mark.parametrize("data", [None, b"", b"{", b"\xff"])
def test_folder_that_is_no_model_is_named(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "model_index.json").write_bytes(data)
    with pytest.raises(ConfigError, match=r"model_index\.json"):
        check_parts(tmp_path, "folder")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"])
def test_pickles_and_variants_are_rejected(base: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(base, tmp_path / "copy")
    unet = tmp_path / "copy/unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / name)
    with pytest.raises(ConfigError, match=r"safetensors.* unet/"):
        check_parts(tmp_path / "copy", "copy")


def test_parts_load_ready_to_encode(base: Path) -> None:
    vae = load_autoencoder(base, "bf16", torch.device("cpu"))
    tokenizer, encoder = load_text_encoder(base, "fp16", torch.device("cpu"))
    assert (vae.dtype, encoder.dtype) == (torch.bfloat16, torch.float16)
    assert not vae.training
    assert not encoder.training
    assert not any(weight.requires_grad for model in (vae, encoder) for weight in model.parameters())
    assert tokenizer.model_max_length == 6


def test_device_that_is_not_there_is_rejected() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert select_device("auto").type == select_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="device"):
        select_device("cuda")


def test_torch_is_restored_afterwards() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with reproducible(before[0] + 1):
        assert torch.get_num_threads() == before[0] + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    with pytest.raises(ZeroDivisionError), reproducible(before[0] + 1):
        raise ZeroDivisionError
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_scratch_models_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    captions = ["a red square", "a blue square", "🎉 \udcff"]
    state = torch.get_rng_state()
    for name, order, seed in (("one", 1, 7), ("two", -1, 7), ("three", 1, 8)):
        torch.rand(3)  # what was drawn before does not matter
        build_scratch(TINY, captions[::order], seed).save_pretrained(tmp_path / name)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    differing = {name for name in one if one[name] != three[name]}
    assert differing == {name for name in one if name.endswith(".safetensors")}
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    build_scratch(TINY, captions, 7)
    assert torch.rand(1) == expected


def test_scratch_model_has_the_wanted_sizes() -> None:
    pipeline = build_scratch(TINY, [], seed=0)
    latents = pipeline.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8)
    text = pipeline.text_encoder(torch.zeros(1, 6, dtype=torch.long)).last_hidden_state
    assert text.shape == (1, 6, 8)
    assert pipeline.unet(latents, 1, text).sample.shape == latents.shape
    scheduler = pipeline.scheduler.config
    assert (scheduler.prediction_type, scheduler.timestep_spacing) == ("v_prediction", "trailing")
    assert (scheduler.beta_schedule, scheduler.beta_start, scheduler.beta_end) == ("scaled_linear", 0.00085, 0.012)


def test_tokenizer_learns_whole_words_and_spells_the_rest(tmp_path: Path) -> None:
    sizes = TextArchitecture(max_tokens=16, vocabulary=600)
    build_tokenizer(["a handwritten digit one", "a handwritten digit two"] * 3, sizes).save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("a handwritten digit two") == ["a</w>", "handwritten</w>", "digit</w>", "two</w>"]
    for caption in ("quizzical zebra", "größe", "日本", "🎉", "\x00\x7f"):
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids, caption
    assert len(tokenizer) <= 600
    one = tokenizer("one", padding="max_length").input_ids
    assert len(one) == 16
    assert (one[0], one[2], one[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token_id)


def test_vocabulary_has_a_bound() -> None:
    captions = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    assert len(build_tokenizer(captions, TextArchitecture(vocabulary=530))) == 530


def test_half_characters_become_question_marks() -> None:
    assert encodable("a\udcff🎉") == "a?🎉"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution": 20}, r"resolution .*\b20\b.*\b16\b"),
        ({"text": {"hidden": 30}}, r"text\.hidden .*\b30\b.*\b4\b"),
        ({"autoencoder": {"channels": [12]}}, "expected a multiple of 8"),
        ({"autoencoder": {"channels": [8, 16], "layers_per_block": 0}}, "8, 16.*layers_per_block"),
        ({"unet": {"channels": [32, 20]}}, "expected a multiple of 8"),
        ({"unet": {"channels": [32]}}, "cross_attention has 2 .*expected 1"),
        ({"text": {"vocabulary": 100}}, "text.vocabulary"),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Architecture.parse(values)


@pytest.mark.parametrize(
    "file", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "manifest.json", "COMMIT"]
)
def test_a_model_that_is_not_what_was_committed_is_never_used(base: Path, workdir: Storage, file: str) -> None:
    """One flipped bit of an autoencoder once had everything encoded and trained again, with it."""
    model = workdir.child("models/base/abc")
    upload(base, model)
    commit_all(model)
    path = Path(model.url, file)
    whole = path.read_bytes()
    flip(path)
    for uri in ("workdir:models/base/abc", model.url):
        with pytest.raises(DamagedFile, match=r"models/base/abc is damaged: .*run the step that makes it again"):
            fetch(uri, workdir)
    path.unlink()
    with pytest.raises(DataError, match=r"models/base/abc.*run the step that makes it again"):
        fetch("workdir:models/base/abc", workdir)
    path.write_bytes(whole)
    forget_checks()
    assert fetch("workdir:models/base/abc", workdir) == Path(model.url)


def test_the_marker_of_an_older_base_model_is_its_manifest(base: Path, workdir: Storage) -> None:
    model = workdir.child("models/base/old")
    upload(base, model)
    commit_all(model)
    model.write("COMMIT", model.read("manifest.json"))
    model.delete("manifest.json")
    assert fetch("workdir:models/base/old", workdir) == Path(model.url)


def test_a_committed_file_that_is_no_manifest_is_damage(base: Path, workdir: Storage) -> None:
    model = workdir.child("models/base/none")
    upload(base, model)
    for manifest in (b"[]", b"{}", b'{"sha256": 1}', b"{"):
        model.write("manifest.json", manifest)
        model.write("COMMIT", sha256(manifest).encode())
        with pytest.raises(DamagedFile, match="models/base/none is damaged: COMMIT is no manifest"):
            fetch("workdir:models/base/none", workdir)


def test_a_damaged_copy_of_a_stored_model_is_fetched_anew(base: Path) -> None:
    model = open_storage("memory://test-damaged-copy/base")
    upload(base, model)
    commit_all(model)
    copy = fetch(model.url, model)
    flip(copy / "unet/config.json")
    assert contents(fetch(model.url, model)) == {entry.key: model.read(entry.key) for entry in model.list()}
    model.write("unet/config.json", b"{}")
    with pytest.raises(DamagedFile, match=r"unet/config\.json is not the file that was committed"):
        fetch(model.url, model)
