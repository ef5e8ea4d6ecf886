"""What a run measures, written for TensorBoard beside ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Entries of events that map names to numbers, and the group of curves that each becomes.
_GROUPS = {
    "train": {
        "losses": "loss",
        "cosines": "cosine",
        "conflict_rate": "conflict rate",
        "norms": "norm of the gradient",
        "norms_after": "norm after surgery",
    },
    "dev": {"metrics": "dev"},
}


class Board:
    """Writes curves into a folder from the first event on.

    Args:
        folder: for TensorBoard's files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Adds an event of ``metrics.jsonl``; those without curves are passed over."""
        for name, value in curves(event):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # Curves of a run that was interrupted end where it goes on.
                self._writer = SummaryWriter(str(self._folder), purge_step=event["step"])
            self._writer.add_scalar(name, value, event["step"])
        if self._writer is not None:
            self._writer.flush()


def curves(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the curves that an event has a point of, and where that is.

    Example:
        >>> dev = {"event": "dev", "step": 10, "metrics": {"sst": 0.5}, "mean": 0.5}
        >>> dict(curves(dev))
        {'dev/sst': 0.5, 'dev/mean': 0.5}
    """
    for entry, group in _GROUPS.get(event["event"], {}).items():
        for name, value in (event.get(entry) or {}).items():
            if value is not None:
                yield f"{group}/{name}", value
    if event["event"] == "dev":
        yield "dev/mean", event["mean"]


def check_there_is_tensorboard() -> None:
    """Refuses to write for it where the package is not installed.

    Raises:
        ValueError: with what to install.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "--tensorboard: must have the package tensorboard, found none; "
            "pip install 'gradsurgery[tensorboard]', or 'tensorboard' alone"
        )
