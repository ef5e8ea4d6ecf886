"""The table's rows that only a GPU can answer: host synchronisations and CUDA graphs."""

from __future__ import annotations

import torch

from benchmarks.speed.methods import Method, Ours, pcgrad
from benchmarks.speed.targets import Finding, Row, Settings, Target
from benchmarks.speed.workloads import MINILM, TINY, make_bert

_REPLAYS = 100
_WARM_UP = 3


def sync_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """A whole step while torch forbids the host to wait for the device."""
    method = _method(settings)
    for _ in range(_WARM_UP):
        method()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        method()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return dict.fromkeys(keys, Finding(f"at least 1 ({reason})", 1.0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict.fromkeys(keys, Finding("0", 0.0))


def graph_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """A captured step, replayed, against the same number of steps without a graph."""
    captured, eager, again = (_method(settings) for _ in range(3))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for method in (captured, eager, again):
            for _ in range(_WARM_UP):
                method()
    torch.cuda.current_stream().wait_stream(stream)
    captured.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured()
    for _ in range(_REPLAYS):
        graph.replay()
        eager()
        again()
    torch.cuda.synchronize()
    difference, noise = _distance(captured, eager), _distance(again, eager)
    measured = "bit for bit" if difference == 0 else f"to {difference:.1e}"
    note = (
        f"parameters after {_REPLAYS} replays of a CUDA graph differ from eager ones by at most "
        f"{difference:.2g}; two eager runs differ by {noise:.2g}"
    )
    return dict.fromkeys(keys, Finding(measured, difference, (note,)))


def _method(settings: Settings) -> Method:
    config, batch_size, length = (TINY, 2, 5) if settings.quick else (MINILM, 16, 48)
    workload = make_bert(config, batch_size, length, device="cuda", seed=settings.seed)
    return Ours(workload, wrap=pcgrad, capturable=True)


def _distance(first: Method, second: Method) -> float:
    pairs = zip(first.workload.shared(), second.workload.shared(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


ROWS = [
    Row("sync", "host synchronisations from the first backward to the end of step()",
        Target("=", 0), "cuda", sync_experiment),
    Row("graph", f"CUDA graph of the whole step, {_REPLAYS} replays: difference from eager",
        Target("≤", 1e-6), "cuda", graph_experiment),
]  # fmt: skip
