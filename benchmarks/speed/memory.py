"""The peak of the memory that an action takes, byte by byte.

Resident memory is not used: it depends on what the allocator keeps, and temporary tensors that fit
into freed memory do not show. On a CPU torch's profiler reports every block that torch's allocator
gives and takes back, temporaries inside operators included, and their running sum is exact and the
same in every run. On CUDA the caching allocator keeps that count itself.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on stderr


def peak_bytes(action: Callable[[], object], device: str = "cpu") -> int:
    """Largest number of bytes alive at once, above those alive before.

    Memory from before that the action frees does not count as negative on a CPU: start with
    nothing to free (no gradients, for a step).

    Example:
        >>> peak_bytes(lambda: [torch.ones(1000).neg(), torch.ones(500)])
        8000
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    alive = peak = 0
    for event in sorted(_blocks(profiler), key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return int(peak)


def _blocks(profiler: profile) -> list[Any]:
    """One event for each block that was given or taken back."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    return [event for event in results.events() if event.name() == "[memory]"]
