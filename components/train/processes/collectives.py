"""Small things that ranks tell one another, as tensors: nothing is pickled."""

from __future__ import annotations

import secrets

import torch

_TEXT_BYTES = 1000


def device() -> torch.device:
    """Return where tensors must lie that ranks exchange: NCCL knows GPUs only."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is up on any rank; every rank calls it."""
    told = torch.tensor([int(flag)], device=device())
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())


def first_problem(problem: str | None) -> str | None:
    """Return the problem of the first rank that has one, or None; every rank calls it, with its own."""
    mine = (problem or "").encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    told = torch.zeros(torch.distributed.get_world_size(), _TEXT_BYTES, dtype=torch.uint8, device=device())
    told[torch.distributed.get_rank()] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    torch.distributed.all_reduce(told)
    texts = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in told.cpu())
    return next((text for text in texts if text), None)


def shared_token() -> str:
    """Return a random token, the same on every rank; every rank calls it."""
    token = torch.tensor([secrets.randbits(62)], dtype=torch.int64, device=device())
    torch.distributed.broadcast(token, src=0)
    return f"{int(token.item()):016x}"
