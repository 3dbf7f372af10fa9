"""What ``--json`` of the verbs about money prints: keys that scripts may rely on."""

from __future__ import annotations

from collections.abc import Mapping

PLAN_KEYS: Mapping[str, str] = {
    "run": "name of the run",
    "model": "what is trained",
    "parameters": "its weights that learn; null: not known",
    "flops_per_image": "FLOPs to train on one image; null: not known",
    "nodes": "nodes",
    "processes": "processes on all nodes",
    "instance": "machine type; null: any",
    "gpu": "type of GPU; empty: none",
    "steps": "optimizer steps",
    "images_trained": "images over all steps, each as often as it is used",
    "images_per_second": "speed over all processes; null: not known",
    "speed_basis": "where that speed is from",
    "mfu": "share of the GPUs' peak FLOP/s; null: not known",
    "work_hours": "hours of training without interruptions; null: not known",
    "pool": "pool in which training starts: local, spot or on-demand",
    "pools": "for each pool: price per node and hour, its source, forecast, best distance of checkpoints",
    "checkpoint_every": "steps between two checkpoints",
    "checkpoint_bytes": "bytes of one; null: not known",
    "checkpoints_kept": "how many are kept",
    "dataset_bytes": "bytes of the encoded dataset; null: not known",
    "storage_usd_per_month": "US dollars; null: not known",
    "budget_usd": "launch.budget_usd; null: none",
    "assumed": "sentences: what the plan assumes",
    "unknown": "sentences: what it does not know",
    "expected": "the forecast of the pool in which training starts; null: not known",
}

COST_KEYS: Mapping[str, str] = {
    "run": "name of the run",
    "seconds": "wall clock",
    "node_seconds": "seconds times nodes",
    "usd": "US dollars until now",
    "hours": "wall clock in hours",
    "goodput": "share of the time that was useful; null: no time yet",
    "useful_hours": "hours of steps that count",
    "usd_per_useful_hour": "null: no useful hour yet",
    "images": "images trained on in steps that count",
    "usd_per_1000_images": "null: no image yet",
    "states": "for each state: seconds, node_seconds, usd",
    "pools": "for each pool: seconds, node_seconds, usd",
    "attempts": "each attempt: number, pool, instance, nodes, price, seconds, node_seconds, usd, goodput",
    "planned": "what the plan expected: hours, usd, goodput, interruptions, usd_per_1000_images; null: no plan",
    "budget": "usd and what is left of it; null: no budget",
}
