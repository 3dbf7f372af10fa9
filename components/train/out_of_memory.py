"""What to do if a batch does not fit into memory: record a smaller micro-batch and start again.

The global batch stays as it is: half the micro-batch means twice the accumulation. A rank that runs out of memory in
the middle of a collective cannot recover by itself, so the gang ends (exit code 71), and its next start reads the
record. That holds on every node, and for later attempts of the same run.
"""

from __future__ import annotations

import torch

from components.errors import DarkroomError, NotFound, OutOfMemory
from components.storage.base import Storage
from components.train.config import TrainConfig

_RECORD = "micro_batch.json"
# What torch's allocator for CPUs writes; on GPUs there is an exception class.
_CPU_WORDS = ("can't allocate memory", "bad_alloc")


def with_recorded_micro_batch(config: TrainConfig, run: Storage) -> TrainConfig:
    """Return the settings with the smaller micro-batch that an earlier attempt recorded, if one did."""
    try:
        recorded = int(run.read_object(_RECORD, "micro_batch")["micro_batch"])
    except NotFound:
        return config
    return config.model_copy(update={"micro_batch": min(recorded, config.micro_batch)})


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)
    )


def record_smaller_micro_batch(config: TrainConfig, run: Storage) -> DarkroomError:
    """Record half the micro-batch for the next start, and return the error to end this one with."""
    if config.micro_batch == 1:
        return DarkroomError(
            "out of memory with one image per forward pass; set train.performance.gradient_checkpointing=true, a "
            "higher train.zero_stage, or use a device with more memory"
        )
    smaller = config.micro_batch // 2
    run.write_json(_RECORD, {"micro_batch": smaller})
    return OutOfMemory(
        f"out of memory with {config.micro_batch} images per forward pass; the next start takes {smaller} and "
        "accumulates more often, so the global batch stays the same"
    )
