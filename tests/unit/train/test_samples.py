"""Sample images are drawn from prompts that are read as the captions trained on were."""

from __future__ import annotations

from pathlib import Path

import torch

from components.autoencoder.scratch import build_scratch
from components.dataset.versions import Shard, make_dataset
from components.model.architecture import Architecture
from components.train.config import TrainConfig
from components.train.setup import _draw_samples

TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
)
SHARD = Shard("shards/16x16/aa", (16, 16), 4, 100, "0" * 64)


def test_a_word_of_the_second_chunk_counts_if_there_is_one(tmp_path: Path) -> None:
    pipeline = build_scratch(TINY, ["one two three four five six"], seed=1)
    pipeline.save_pretrained(tmp_path)
    weights = pipeline.unet.state_dict()

    def drawn(chunks: int, last: str) -> bytes:
        samples = {"prompts": [f"one two three four {last}"], "steps": [1], "denoising_steps": 2}
        config = TrainConfig.parse({"samples": samples})
        dataset = make_dataset("key", {"text_chunks": chunks}, [SHARD], 0)
        return _draw_samples(tmp_path, dataset, config, 5, torch.device("cpu"), weights).tobytes()

    assert drawn(1, "five") == drawn(1, "six")
    assert drawn(2, "five") != drawn(2, "six")
