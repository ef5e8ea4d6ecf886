"""Work for the device: how often a function launches a kernel, and how often the host waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_COPIES = ("Memcpy", "Memset")
_WAIT = "synchronizing CUDA operation"


def count_launches(run: Callable[[], object], device: str) -> int:
    """Counts the kernels that a function launches; on a CPU, the operators that it calls.

    Args:
        run: the function, which is called once.
        device: of its tensors.

    Example:
        >>> count_launches(lambda: torch.ones(3) + 1, "cpu")
        2
    """
    if torch.device(device).type == "cpu":
        operators = _Operators()
        with operators:
            run()
        return operators.number
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [each for each in profiler.events() or () if each.device_type.name == "CUDA"]
    return len([each for each in on_device if not each.name.startswith(_COPIES)])


def count_waits(run: Callable[[], object]) -> int:
    """Counts how often a function has the host wait for the CUDA device, as torch notices it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(_WAIT in str(each.message) for each in caught)


class _Operators(TorchDispatchMode):
    """Counts what is dispatched, views left out, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))
