"""One rank that loads the newest checkpoint of a run and saves it again, untrained, one step further.

RANK=0 WORLD_SIZE=1 … python reshard_rank.py WORKDIR RUN STAGE PRECISION
"""

from __future__ import annotations

import os
import sys

import torch

from components.model import checkpoints
from components.storage.open import open_storage
from components.train.checkpointing import Saver
from components.train.config import TrainConfig
from components.train.step.engine import Engine, init_distributed, load_weights


def main(workdir: str, name: str, stage: str, precision: str) -> None:
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    init_distributed("cpu")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    storage = open_storage(workdir)
    run = storage.child(f"runs/{name}")
    config = TrainConfig.parse(
        {"zero_stage": int(stage), "precision": precision, "global_batch": 7, "checkpoint": {"keep": 100}}
    )
    unet = UNet2DConditionModel.from_pretrained(storage.local_path("models/base/tiny/unet"), use_safetensors=True)
    checkpoint = checkpoints.newest(run)
    assert checkpoint is not None
    load_weights(unet, checkpoint.read_all("master"))
    engine = Engine(unet, lambda model, batch: batch.weights, config)
    engine.restore(checkpoint)
    with Saver(run, rank, world, checkpoint.training, engine.shapes, config, lambda step, problem: None) as saver:
        saver.save_now(checkpoint.step + 1, engine.counters, engine.pieces)
    torch.distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
