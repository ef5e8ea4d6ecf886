"""The table's rows on a compiled model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.answers import check
from benchmarks.speed.methods import METHODS
from benchmarks.speed.targets import Finding, Row, Settings, Target, not_measured
from benchmarks.speed.workloads import MINILM, TINY, make_bert

_BACKENDS = ("inductor", "aot_eager")  # the second where the first finds no compiler


def compile_experiment(
    settings: Settings, keys: frozenset[str], *, device: str
) -> dict[str, Finding]:
    """PCGrad's gradient through a compiled trunk against the same without compilation."""
    tried = []
    for backend in _BACKENDS:
        try:
            difference = compare(settings, device, backend)
        except (RuntimeError, ImportError, OSError) as error:
            tried.append(f"{backend}: {' '.join(str(error).split())[:200]}")
            continue
        finally:
            torch.compiler.reset()
        measured = f"works ({backend}), same to {difference:.1e}"
        return dict.fromkeys(keys, Finding(measured, difference, tuple(tried)))
    return dict.fromkeys(keys, not_measured("; ".join(tried)))


def compare(settings: Settings, device: str, backend: str) -> float:
    """Relative difference of the combined gradients; the compiled one is checked as well."""
    config = TINY if settings.quick else replace(MINILM, num_layers=2)
    gradients = []
    for compiles in (False, True):
        workload = make_bert(config, 4, 16, device=device, seed=settings.seed)
        if compiles:
            workload.compile(backend)
        method = METHODS["pcgrad"](workload)
        check(method)
        method.backwards()
        method.surgery()
        gradients.append(_gradient(workload.shared()))
    eager, compiled = gradients
    return float((compiled - eager).norm() / eager.norm())


def _gradient(parameters: list[Tensor]) -> Tensor:  # [P]
    return torch.cat([p.grad.reshape(-1).double() for p in parameters if p.grad is not None])


ROWS = [
    Row("compile", "PCGrad with a torch.compile'd model: difference from eager",
        Target("≤", 1e-5), "cpu", partial(compile_experiment, device="cpu")),
]  # fmt: skip
CUDA_ROWS = [
    Row("compile-cuda", "the same on CUDA", Target("≤", 1e-4), "cuda",
        partial(compile_experiment, device="cuda")),
]  # fmt: skip
