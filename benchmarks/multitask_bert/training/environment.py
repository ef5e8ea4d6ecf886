"""Where a run takes place: hardware, versions, date."""

from __future__ import annotations

import platform
import re
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

_CLEAR = Path("/proc/self/clear_refs")


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and date."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "git_commit": _git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def forget_peak(device: torch.device) -> None:
    """Begin anew to watch for the most memory that this process takes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _CLEAR.write_text("5")  # which sets the peak to what is taken now


def peak_bytes(device: torch.device) -> int | None:
    """Tell the most memory that was taken since; None where the system does not say.

    On a GPU it is what tensors took there, elsewhere all that the process has in memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
