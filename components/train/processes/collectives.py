"""Small values that ranks exchange, as tensors: nothing is pickled."""

from __future__ import annotations

import secrets

import torch

_TEXT_BYTES = 1000


def device() -> torch.device:
    """Return the device of tensors that ranks exchange: NCCL needs a GPU."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is true on any rank; every rank calls it."""
    flags = torch.tensor([int(flag)], device=device())
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags.item())


def first_problem(problem: str | None) -> str | None:
    """Return the problem of the first rank that has one, or None; every rank calls it, with its own."""
    mine = (problem or "").encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    rows = torch.zeros(torch.distributed.get_world_size(), _TEXT_BYTES, dtype=torch.uint8, device=device())
    rows[torch.distributed.get_rank()] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    torch.distributed.all_reduce(rows)
    texts = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows.cpu())
    return next((text for text in texts if text), None)


def shared_token() -> str:
    """Return a random token, the same on every rank; every rank calls it."""
    token = torch.tensor([secrets.randbits(62)], dtype=torch.int64, device=device())
    torch.distributed.broadcast(token, src=0)
    return f"{int(token.item()):016x}"
