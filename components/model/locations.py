"""Models as diffusers folders: how they are fetched, checked for their parts, and loaded.

A model's location is one string, which every step accepts:

- ``workdir:models/base/0123456789abcdef``  a model that a step of this workdir made and committed
- ``some/folder``                           a diffusers folder on this machine
- ``s3://bucket/prefix``                    a diffusers folder in a store
- ``owner/name`` or ``owner/name@revision`` a repository of the Hugging Face hub

Only safetensors are loaded; a model that has only pickles is rejected.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.digests import short
from components.errors import ConfigError, DamagedFile, DataError, NotFound, StorageError
from components.model.manifest import COMMIT, MANIFEST, check_model
from components.model.parts import PARTS, SECOND_TEXT, files_of_folder, part_problems
from components.model.text_reading import WORKDIR
from components.storage.base import Storage
from components.storage.files import temporary_cache
from components.storage.open import open_storage

if TYPE_CHECKING:
    import torch

_HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# What is downloaded of a repository of the hub.
HUB_FILES = ["model_index.json", MANIFEST, *(f"{part}/*" for part in (*PARTS, *SECOND_TEXT))]


def fetch(uri: str, workdir: Storage) -> Path:
    """Return a local folder with a model; a model that is not on this machine is downloaded into a cache.

    Raises:
        ConfigError: If the location is not valid, or there is no such folder or repository.
        DataError: If a step of this workdir did not finish the model.
        DamagedFile: If Darkroom made the model, and a file of it is not what it was then.
        StorageError: If it cannot be downloaded.
    """
    if uri.startswith(WORKDIR):
        key = uri.removeprefix(WORKDIR)
        if not workdir.exists(f"{key}/{COMMIT}"):
            raise DataError(
                f"{workdir.url} has no finished model {key} (no {COMMIT}); run the step that makes it again"
            )
        return _checked(workdir.child(key))
    if "://" in uri:
        return _checked(open_storage(uri))
    if uri and Path(uri).expanduser().is_dir():
        _checked(open_storage(str(Path(uri).expanduser())))
        return Path(uri).expanduser()
    if hub := _HUB_NAME.fullmatch(uri):
        return _from_hub(hub["repository"], hub["revision"])
    raise ConfigError(f"model {uri!r}: no such folder; expected a folder, s3://bucket/prefix or owner/name of the hub")


def read_file(name: str, workdir: Storage) -> bytes:
    """Read one file that belongs to a model: a path, ``workdir:…`` or ``s3://…``.

    Raises:
        ConfigError: If there is no such file.
        StorageError: If it cannot be downloaded.
    """
    try:
        if name.startswith(WORKDIR):
            return workdir.read(name.removeprefix(WORKDIR))
        if "://" in name:
            folder, _, file = name.rpartition("/")
            return open_storage(folder).read(file)
        return Path(name).expanduser().read_bytes()
    except (OSError, NotFound) as error:
        raise ConfigError(f"file {name!r} cannot be read ({error}); expected a path, workdir:… or s3://…") from None


def is_hub_name(uri: str) -> bool:
    """Tell whether a location is a repository of the hub: neither an address nor a folder on this machine."""
    return _HUB_NAME.fullmatch(uri) is not None and not Path(uri).expanduser().is_dir()


def parse_hub_name(uri: str) -> tuple[str, str | None] | None:
    """Return repository and revision of a location on the hub; None if it is none."""
    hub = _HUB_NAME.fullmatch(uri) if is_hub_name(uri) else None
    return (hub["repository"], hub["revision"]) if hub is not None else None


def pin(uri: str, folder: Path) -> str:
    """Return the location at which later steps get exactly the model that ``fetch`` returned as ``folder``.

    A hub repository is pinned to the commit that was downloaded, so that all steps of a run use the same one.
    """
    # The hub's cache keeps each commit in a folder that has its name.
    return f"{uri.partition('@')[0]}@{folder.name}" if is_hub_name(uri) else uri


def check_parts(folder: Path, uri: str) -> None:
    """Check that a folder holds a Stable Diffusion model with all the parts that the steps load.

    Raises:
        ConfigError: If a part is missing, is of another class, or does not fit the others.
    """
    problems = list(part_problems(files_of_folder(folder), uri))
    if problems:
        raise ConfigError("\n".join(problems))


def load_autoencoder(folder: Path, dtype: str, device: torch.device) -> Any:
    """Load the ``AutoencoderKL`` of a model, ready to encode; ``dtype`` is fp32, bf16 or fp16."""
    from diffusers import AutoencoderKL

    quiet_libraries()
    vae = AutoencoderKL.from_pretrained(
        folder / "vae", torch_dtype=torch_dtype(dtype), use_safetensors=True, local_files_only=True
    )
    return vae.to(device).eval().requires_grad_(False)


def load_text_encoder(folder: Path, dtype: str, device: torch.device) -> tuple[Any, Any]:
    """Load the ``CLIPTokenizer`` and the ``CLIPTextModel`` of a model, ready to encode."""
    from transformers import CLIPTextModel

    return _load_text_encoder(folder, "", CLIPTextModel, dtype, device)


def load_text_encoders(folder: Path, dtype: str, device: torch.device) -> list[tuple[Any, Any]]:
    """Load tokenizer and text encoder of a model, and SDXL's second pair (``CLIPTextModelWithProjection``)."""
    from transformers import CLIPTextModelWithProjection

    encoders = [load_text_encoder(folder, dtype, device)]
    if (folder / "text_encoder_2").is_dir():
        encoders.append(_load_text_encoder(folder, "_2", CLIPTextModelWithProjection, dtype, device))
    return encoders


def _load_text_encoder(folder: Path, number: str, kind: Any, dtype: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import CLIPTokenizer

    quiet_libraries()
    tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}", local_files_only=True)
    encoder = kind.from_pretrained(
        folder / f"text_encoder{number}", dtype=torch_dtype(dtype), use_safetensors=True, local_files_only=True
    )
    return tokenizer, encoder.to(device).eval().requires_grad_(False)


def quiet_libraries() -> None:
    """Turn off the progress bars of diffusers and transformers, which would garble Darkroom's own."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def warnings_of_transformers_off() -> Iterator[None]:
    """Keep transformers from warning, at an import, of slow image processors that nothing here uses."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def encodable(caption: str) -> str:
    """Return a caption that tokenizers accept: a lone surrogate, which UTF-8 cannot encode, becomes ``?``."""
    return caption.encode("utf-8", "replace").decode()


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for fp32, bf16 or fp16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def select_device(name: str) -> torch.device:
    """Return the device of a setting: ``auto`` is the GPU if there is one.

    Raises:
        ConfigError: For a GPU that is not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda and this machine has no usable GPU; set device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Let torch compute the same bytes each time on the same kind of CPU or GPU, while the context lasts.

    Args:
        threads: CPU threads of one operation; the last bits of a sum depend on how it is split among them.
    """
    import torch

    # cuBLAS reads this when it first starts; without it, its results may differ from call to call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        torch.backends.cudnn.benchmark = before[3]


def _checked(model: Storage) -> Path:
    """Return a folder with a model, whose files are those of its manifest if Darkroom made it."""
    folder = model.local_path()
    try:
        if folder is not None:
            check_model(model, folder)
            return folder
        return _checked_copy(model)
    except NotFound:  # another program made it, and nobody knows its digests
        return folder or _cached(model)


def _checked_copy(model: Storage) -> Path:
    """Return a copy of a model of a store; one that is damaged is fetched once more."""
    copy = _cached(model)
    try:
        check_model(model, copy)
    except DamagedFile:
        shutil.rmtree(copy, ignore_errors=True)
        copy = _cached(model)
        check_model(model, copy)
    return copy


def _cached(storage: Storage) -> Path:
    """Return a local copy of a folder of a store; its name is a digest of the listing, so it is never stale."""
    entries = list(storage.list())
    if not entries:
        raise ConfigError(f"model {storage.url}: nothing there, expected a diffusers folder")
    cache = temporary_cache("darkroom-models")
    target = cache / short([storage.url, [list(entry) for entry in entries]])
    if not target.exists():
        part = Path(tempfile.mkdtemp(prefix="part-", dir=cache))
        try:
            for entry in entries:
                storage.download(entry.key, part / entry.key)
            part.rename(target)
        except NotFound as error:
            raise StorageError(f"model {storage.url} changed while it was downloaded ({error}); start again") from None
        except OSError as error:
            if not target.exists():  # if it exists, another process was faster, and its copy is the same
                raise StorageError(f"cannot keep model {storage.url} in {cache}: {error.strerror}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def no_such_repository(repository: str, error: Exception) -> ConfigError:
    """Return the error for a name that the hub does not know, or not to this user."""
    reason = str(error).strip().splitlines()[0]
    return ConfigError(
        f"model {repository!r} is neither a folder on this machine nor a repository of the hub ({reason}); "
        "correct the name"
    )


def _from_hub(repository: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=HUB_FILES,
            ignore_patterns=["*.bin", "*.ckpt", "*.msgpack", "*.fp16.safetensors", "*.non_ema.safetensors"],
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise no_such_repository(repository, error) from None
    except OSError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(f"model {repository!r} cannot be downloaded from the hub: {reason}") from None
    return Path(folder)
