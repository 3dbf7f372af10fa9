"""The work of one rank: join the others, build the training, and train; `components.train.rank` starts it."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from components.dataset.empty_prompt import read_empty_prompt
from components.dataset.prompts import prompts_of
from components.dataset.versions import Dataset, read_only_dataset, read_version
from components.errors import DataError
from components.model import checkpoints, locations, sampling
from components.model.base_record import check_base
from components.model.text_reading import reading_of_encoding
from components.processes.stopping import Stopping
from components.processes.watchdog import Watchdog
from components.progress import Progress
from components.storage.base import Storage
from components.train.checkpointing import Saver
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, Reader
from components.train.identity import training_identity
from components.train.loop import Training, train
from components.train.metrics.monitor import Monitor
from components.train.metrics.validation import Validation
from components.train.out_of_memory import is_out_of_memory, record_smaller_micro_batch, with_recorded_micro_batch
from components.train.processes.agreement import Agreement
from components.train.request import Request
from components.train.starting_point import checkpoint_of_earlier_run, find_checkpoint
from components.train.step.engine import Engine, init_distributed, load_weights
from components.train.step.flops import StepFlops, device_peak_flops
from components.train.step.loss import make_loss


def work(request: Request, stopping: Stopping, watchdog: Watchdog) -> None:
    """Join the other ranks, go on from the newest whole checkpoint, and train.

    Raises:
        Preempted: If a rank got a stop signal; the state is saved.
        DarkroomError: For any other error of `train`, and for wrong data or settings.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    init_distributed(device)
    request = replace(request, config=with_recorded_micro_batch(request.config, request.run))
    try:
        job = _prepare(request, stopping, watchdog)
        with job.monitor, job.saver:
            train(job)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise record_smaller_micro_batch(request.config, request.run) from error
        raise
    torch.distributed.barrier()


def _prepare(request: Request, stopping: Stopping, watchdog: Watchdog) -> Training:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    config, run = request.config, request.run
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    peak = device_peak_flops(config.precision)
    dataset = _dataset(request.dataset, request.version)
    config = _with_prompts(config.in_steps(dataset.epoch_samples), dataset, request.seed)
    monitor = Monitor(run, config, Progress(), is_main_rank=rank == 0, peak=None if peak is None else peak * world)
    monitor.loading(world)
    base = locations.fetch(request.base_model, request.workdir)
    check_base(run, request.base_model, base, needed=("unet", "scheduler"))
    training = training_identity(config, request.seed, dataset, base)

    unet = UNet2DConditionModel.from_pretrained(
        base / "unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    scheduler = DDPMScheduler.from_pretrained(base / "scheduler", local_files_only=True)
    scaling = float(AutoencoderKL.load_config(base / "vae", local_files_only=True)["scaling_factor"])

    checkpoint, skipped = find_checkpoint(run, training, rank, world)
    _check_conditioning(unet, request.dataset)
    is_continued = checkpoint is None and bool(config.continued.run)
    if is_continued:
        checkpoint = checkpoint_of_earlier_run(request, rank, world)
    if checkpoint is not None:
        load_weights(unet, checkpoint.read_all("master"))
    engine = Engine(_tuned(unet, config), make_loss(scheduler, config.performance.channels_last), config)
    if checkpoint is not None:
        engine.restore(checkpoint)
    step = checkpoint.step if checkpoint is not None else 0

    monitor.start(step, skipped, training)
    if is_continued:
        monitor.event("continued", run=config.continued.run, step=step)
    if rank == 0:
        checkpoints.discard_after(run, step)
    drawing = Drawing(request.seed, scheduler.config.num_train_timesteps, scaling, config.caption_dropout)
    return Training(
        config=config,
        step=step,
        engine=engine,
        reader=Reader(dataset, request.dataset, drawing, config, rank, world),
        saver=Saver(run, rank, world, training, engine.shapes, config, monitor.save_failed),
        agreement=Agreement(stopping, engine.device),
        watchdog=watchdog,
        monitor=monitor,
        draw_samples=partial(_draw_samples, base, dataset, config, request.seed, engine.device),
        step_flops=StepFlops(unet, config.global_batch) if rank == 0 and peak is not None else None,
        validation=_validation(dataset, request.dataset, drawing, config, rank, world),
    )


def _validation(
    dataset: Dataset, storage: Storage, drawing: Drawing, config: TrainConfig, rank: int, world: int
) -> Validation | None:
    if config.validation.every is None or dataset.held_out == 0:
        return None
    return Validation(dataset, storage, drawing, config, rank, world)


def _tuned(unet: Any, config: TrainConfig) -> nn.Module:
    """Apply train.performance: trade memory for time, and time to compile for faster steps."""
    if config.performance.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.performance.compile:
        unet.compile()
    tuned: nn.Module = unet
    return tuned


def _dataset(storage: Storage, version: str | None) -> Dataset:
    # Another run may commit a newer version at any time; a training keeps the one that it began with.
    return read_version(storage, version) if version else read_only_dataset(storage)


def _with_prompts(config: TrainConfig, dataset: Dataset, seed: int) -> TrainConfig:
    """Return the settings with prompts of the sample images: the dataset's captions if the settings name none."""
    samples = config.samples
    if samples.prompts or not (samples.steps or samples.every):
        return config
    prompts = prompts_of(dataset, seed, "train.samples.prompts")
    return config.model_copy(update={"samples": samples.model_copy(update={"prompts": prompts})})


def _check_conditioning(unet: Any, dataset: Storage) -> None:
    """Check that the dataset has all inputs that the UNet needs."""
    if unet.config.addition_embed_type == "text_time" and read_empty_prompt(dataset).pooled is None:
        raise DataError(
            f"the UNet is SDXL's, but {dataset.url} has no pooled text embeddings; encode with the model's encoders"
        )


def _draw_samples(
    base: Path, dataset: Dataset, config: TrainConfig, seed: int, device: torch.device, weights: dict[str, Tensor]
) -> Image.Image:
    height, width = dataset.main_bucket
    # Drawing may advance the global generators; training must not notice.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = sampling.load_model(base, device, reading_of_encoding(dataset.encoding))
        model.unet.load_state_dict(weights)
        images = sampling.draw(
            *model,
            prompts=config.samples.prompts,
            seeds=[seed] * len(config.samples.prompts),
            steps=config.samples.denoising_steps,
            guidance=config.samples.guidance,
            height=height,
            width=width,
        )
    return sampling.contact_sheet(images, len(images))
