"""What a run leaves, as far as it must not depend on the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.multitask_bert.records.record import Record
from benchmarks.multitask_bert.training.checkpoint import load_state

TIMES = {
    "seconds",
    "eval_seconds",
    "train_seconds",
    "peak_bytes",
    "samples_per_second",
    "eval_samples_per_second",
}
_OF_TIMES = {"metrics_bytes", "metrics_digest"}  # of the lines that tell the times

FILES = {
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    *(f"predictions/{task}-dev.csv" for task in ("sst", "quora", "sts")),
    "state/state.pt",
}


def outcome(folder: Path) -> dict[str, Any]:
    """The files of a complete run by name, in forms that ``==`` compares bit for bit."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name == "metrics.jsonl":
            found[name] = [_without_times(event) for event in Record(folder).events()]
        elif name == "state/state.pt":
            state = load_state(path)
            state["progress"] = _without_times(state["progress"])
            found[name] = _plain({k: v for k, v in state.items() if k not in _OF_TIMES})
        elif name == "config.json":
            config = Record(folder).read_json(name)
            found[name] = {key: value for key, value in config.items() if key != "command"}
        elif path.is_file() and name != "environment.json":
            found[name] = path.read_bytes()
    return found


def _without_times(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in TIMES}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
