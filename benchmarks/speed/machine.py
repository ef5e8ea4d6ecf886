"""The machine: what it is, and how fast it reads memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.multitask_bert.training.environment import environment
from benchmarks.speed.measure import Action, Timings

_READ = "read: "
_CHUNK = 1 << 17  # floats that one thread reads at a time
_PACKAGES = ("torch", "triton", "torchjd", "pytorch_optimizer", "transformers", "numpy")


def readers(flat: Tensor) -> dict[str, Action]:
    """Several ways to read every element of a vector once, to be timed among other actions.

    Args:
        flat: ``[N]``, of at least two elements.
    """
    half = len(flat) // 2
    first, second = flat[:half], flat[half : 2 * half]
    ways: dict[str, Callable[[], object]] = {
        "sum": flat.sum,
        "largest": flat.amax,
        "norm": lambda: torch.linalg.vector_norm(flat),
        "dot of the halves": lambda: torch.dot(first, second),
    }
    if flat.device.type == "cpu":
        pairs = list(zip(first.split(_CHUNK), second.split(_CHUNK), strict=True))
        ways["dot of the halves in threads"] = lambda: _in_threads(pairs)
    return {_READ + name: Action(way) for name, way in ways.items()}


def fastest_reader(timings: Timings) -> str:
    """Returns the fastest reader among the actions, which sets the bandwidth."""
    return timings.fastest([name for name in timings.seconds if name.startswith(_READ)])


def floor_seconds(num_tasks: int, read_seconds: float) -> float:
    """The least that surgery on T rows can take, when reading them once takes so long.

    Every row is read for the Gram matrix and again for the sum, which is written: ``(2T + 1) P``
    elements, against ``T P`` of one reading.

    Example:
        >>> round(floor_seconds(3, 0.006), 6)
        0.014
    """
    return read_seconds * (2 * num_tasks + 1) / num_tasks


def describe(device: str, details: Iterable[str] = ()) -> str:
    """One line: hardware, versions, threads and date, after the details of a measurement."""
    device = device if torch.cuda.is_available() else "cpu"
    found = environment(torch.device(device))
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    hardware = [f"{found['cpu']} ({os.cpu_count()} cores)"]
    if found["gpu"]:
        hardware.append(f"{found['gpu']}, CUDA {torch.version.cuda}")
    versions = [f"{name} {_version(name)}" for name in _PACKAGES if _version(name)]
    parts = [
        *details,
        f"{found['num_threads']} threads",
        *hardware,
        f"Python {found['python']}",
        *versions,
        f"commit {(found['git_commit'] or 'unknown')[:10]}",
        date,
    ]
    return "; ".join(parts)


def available_bytes(device: str) -> int:
    """Free memory of the device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo: must state MemAvailable, found no such line")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _in_threads(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for _ in _pool(torch.get_num_threads()).map(lambda pair: torch.dot(*pair), pairs):
        pass


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)
