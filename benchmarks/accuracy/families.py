"""Gradients of every kind that small problems find hard."""

from __future__ import annotations

import torch
from torch import Tensor


def families(num_tasks: int, seed: int) -> dict[str, Tensor]:  # [T, P] each
    """Makes rows ``[T, P]`` of float64 by the name of their kind, with P = 3 T + 5."""
    generator = torch.Generator().manual_seed(seed)
    width = 3 * num_tasks + 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = 10 ** (torch.rand(num_tasks, 1, generator=generator, dtype=torch.float64) * 16 - 8)
    signs = (-1.0) ** torch.arange(num_tasks, dtype=torch.float64).unsqueeze(-1)
    conflict = normal(num_tasks, width)
    conflict = conflict - 0.97 * conflict.mean(0)
    spread = normal(num_tasks, width)
    steps = torch.arange(num_tasks, dtype=torch.float64).unsqueeze(-1) / num_tasks
    rank = max(1, num_tasks // 2)
    whole = normal(num_tasks, rank).mul(8).trunc()
    whole = whole + torch.where(whole < 0, -1, 1)  # exact products, and no gradient is zero
    halves = whole @ normal(rank, width).mul(8).round()
    twins = normal(num_tasks, width)
    twins[1::2] = twins[0::2][: len(twins[1::2])] + 1e-3 * twins[1::2]
    return {
        "random": normal(num_tasks, width),
        "conflict": conflict,
        "agree": normal(num_tasks, width) + 3 * normal(width),
        "rank-deficient": halves,
        "collinear": normal(width) + 1e-4 * normal(num_tasks, width),
        "opposite": signs * normal(width) + 1e-4 * normal(num_tasks, width),
        "scaled": spread * scales,
        "scaled conflict": conflict * scales,
        "near twins": twins,
        "hierarchy": normal(num_tasks, width) * 10 ** (-6 * steps),
        "tiny cosines": torch.eye(num_tasks, width, dtype=torch.float64)
        + 1e-9 * normal(num_tasks, width),
    }


# Where two gradients cancel, or depend on each other: answers need not be unique, nor exist.
SINGULAR = ("rank-deficient", "opposite")
