"""The place of this node among those of one job, given as ``torchrun`` takes it: by flags or ``PET_*`` variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from components.errors import ConfigError

_LOOPBACK = "127.0.0.1"
_DEFAULT_PORT = 29500  # torchrun's
_MOST_RANKS, _MOST_NODES = 1024, 65_536


@dataclass(frozen=True)
class Node:
    """The place of this node in the gang.

    Attributes:
        nodes: How many nodes there are.
        number: This one's number, from 0.
        ranks: Processes to start here, the same number on every node.
        address: Host that the ranks meet at.
        port: Port that they meet at; 0 picks a free one each time, which only a single node can do.
    """

    nodes: int
    number: int
    ranks: int
    address: str
    port: int


def count_devices(kind: str) -> int:
    """Return how many ranks ``auto``, ``gpu`` or ``cpu`` mean here, as ``torchrun`` counts them.

    Raises:
        ConfigError: If there is no GPU to count.
    """
    import torch

    if kind == "gpu" and not torch.cuda.is_available():
        raise ConfigError("PET_NPROC_PER_NODE=gpu, but no GPU can be used here; expected auto, cpu or a number")
    if kind == "gpu" or (kind == "auto" and torch.cuda.is_available()):
        return torch.cuda.device_count()
    return usable_cores()


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def single_node(ranks: int) -> Node:
    """Return the place of a node that is alone: its ranks meet at a free port of its own."""
    return Node(1, 0, ranks, _LOOPBACK, 0)


def this_node(variables: Mapping[str, str], ranks: int, count: Callable[[str], int] = count_devices) -> Node:
    """Return the place of this node.

    A single node meets itself at a free port of its own, whatever address it was given.

    Args:
        variables: ``PET_NNODES``, ``PET_NODE_RANK``, ``PET_NPROC_PER_NODE``, ``PET_MASTER_ADDR`` and
            ``PET_MASTER_PORT``, among others.
        ranks: Processes to start if PET_NPROC_PER_NODE is not set.
        count: Returns the number that a word such as ``auto`` means.

    Raises:
        ConfigError: If a value is missing or cannot be used.
    """
    nodes = _nodes(variables.get("PET_NNODES") or "1")
    per_node = variables.get("PET_NPROC_PER_NODE") or str(ranks)
    here = (
        count(per_node)
        if per_node in ("auto", "gpu", "cpu")
        else _number("PET_NPROC_PER_NODE", per_node, 1, _MOST_RANKS)
    )
    if nodes == 1:
        return single_node(here)
    for name in ("PET_NODE_RANK", "PET_MASTER_ADDR"):
        if not variables.get(name):
            raise ConfigError(f"{name} is not set, but PET_NNODES={nodes}: each of several nodes needs it")
    number = _number("PET_NODE_RANK", variables["PET_NODE_RANK"], 0, nodes - 1)
    port = _number("PET_MASTER_PORT", variables.get("PET_MASTER_PORT") or str(_DEFAULT_PORT), 1, 65_535)
    return Node(nodes, number, here, variables["PET_MASTER_ADDR"], port)


def _nodes(text: str) -> int:
    # torchrun also takes MIN:MAX. Here the number of nodes is fixed for an attempt by what starts them.
    least, _, most = text.partition(":")
    if most and most != least:
        raise ConfigError(f"PET_NNODES={text!r}: expected one number; another world size is another start")
    return _number("PET_NNODES", least, 1, _MOST_NODES)


def _number(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{name}={text!r}: expected a number from {least} to {most}")
    return int(text)
