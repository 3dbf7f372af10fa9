"""One rank of a training; ``python -m components.train`` starts as many as a node has devices.

It reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them, and exits with the codes of
`components.errors`.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from components import checkpoints, models, sampling
from components.dataset import Dataset, read_dataset
from components.errors import DarkroomError, DataError
from components.progress import Progress
from components.storage import Storage
from components.train.command import Request, parse
from components.train.config import TrainConfig
from components.train.diffusion import denoising_loss
from components.train.engine import Engine, init_distributed, load_weights
from components.train.identity import training_identity
from components.train.monitor import Monitor
from components.train.reader import Drawing, Reader
from components.train.saver import Saver
from components.train.stopping import Stopping
from components.train.train import Training, train


def work(request: Request) -> None:
    """Join the other ranks, go on from the newest whole checkpoint, and train."""
    stopping = Stopping()
    stopping.listen()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    init_distributed(device)
    train(_prepare(request, stopping))
    torch.distributed.barrier()


def _prepare(request: Request, stopping: Stopping) -> Training:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    config, run = request.config, request.run
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    base = models.fetch(request.base_model, request.workdir)
    dataset = _dataset(request.dataset)
    training = training_identity(config, request.seed, dataset, base)

    unet = UNet2DConditionModel.from_pretrained(
        base / "unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    scheduler = DDPMScheduler.from_pretrained(base / "scheduler", local_files_only=True)
    scaling = float(AutoencoderKL.load_config(base / "vae", local_files_only=True)["scaling_factor"])

    checkpoint, skipped = _find_checkpoint(run, training, rank, world)
    if checkpoint is not None:
        load_weights(unet, checkpoint.read_all("master"))
    engine = Engine(unet, partial(_loss, scheduler), config)
    if checkpoint is not None:
        engine.restore(checkpoint)
    step = checkpoint.step if checkpoint is not None else 0

    monitor = Monitor(run, config, Progress(), speaks=rank == 0)
    monitor.start(step, skipped)
    if rank == 0:
        checkpoints.discard_after(run, step)
    drawing = Drawing(request.seed, scheduler.config.num_train_timesteps, scaling, config.caption_dropout)
    return Training(
        config=config,
        step=step,
        engine=engine,
        reader=Reader(dataset, request.dataset, drawing, config, rank, world),
        saver=Saver(run, rank, world, _shared_token(), training, engine.shapes, config.keep),
        stopping=stopping,
        monitor=monitor,
        draw_samples=partial(_draw_samples, base, dataset, config, request.seed),
    )


def _loss(scheduler: Any, model: nn.Module, batch: Any) -> Tensor:
    return denoising_loss(model, scheduler, batch)


def _dataset(storage: Storage) -> Dataset:
    dataset = read_dataset(storage)
    if dataset is None:
        raise DataError(f"there is no dataset at {storage.url}; run the latents and index steps first")
    return dataset


def _find_checkpoint(
    run: Storage, training: str, rank: int, world: int
) -> tuple[checkpoints.Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, and why newer ones are not; the ranks share the verifying."""
    skipped: list[str] = []
    for found in checkpoints.candidates(run, training):
        try:
            if isinstance(found, DataError):
                raise found
            found.verify(found.parts[rank::world])
            problem = None
        except DataError as error:
            problem = str(error)
        problems: list[str | None] = [None] * world
        torch.distributed.all_gather_object(problems, problem)
        told = next((text for text in problems if text), None)
        if told is None and not isinstance(found, DataError):
            return found, skipped
        skipped.append(str(told))
    return None, skipped


def _shared_token() -> str:
    """Return a random token of this gang, the same on every rank."""
    token: list[Any] = [secrets.token_hex(8)]
    torch.distributed.broadcast_object_list(token, src=0)
    return str(token[0])


def _draw_samples(
    base: Path, dataset: Dataset, config: TrainConfig, seed: int, weights: dict[str, Tensor]
) -> Image.Image:
    model = sampling.load_model(base, torch.device("cpu"))
    model.unet.load_state_dict(weights)
    height, width = dataset.shards[0].bucket
    images = sampling.draw(
        *model,
        prompts=config.sample_prompts,
        seeds=[seed] * len(config.sample_prompts),
        steps=config.sample_denoising_steps,
        guidance=config.sample_guidance,
        height=height,
        width=width,
    )
    return sampling.contact_sheet(images, len(images))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank and return its exit code."""
    try:
        work(parse(argv))
    except DarkroomError as error:
        print(f"rank {os.environ.get('RANK', '?')}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    # The communication library's threads can abort while the interpreter shuts down, which would replace the code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
