"""asv: whole steps over T and P, and of the MiniLM geometry, for every method.

A method whose combined gradient is wrong fails in ``setup`` and is not timed.
"""

from __future__ import annotations

from benchmarks.speed.answers import check
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import FAMILY, METHODS, Method
from benchmarks.speed.steps import count_flops, step_peak_bytes
from benchmarks.speed.workloads import MINILM, make_bert, make_mlp

# Of the family PCGrad alone over all sizes: the others differ from it in their weights.
_FEW = [name for name in METHODS if name not in FAMILY or name == "pcgrad"]
_MLP = ([2, 3, 8, 40], [100_000, 1_000_000], _FEW)
_ONE_P = (_MLP[0], _MLP[1][:1], _FEW)
_ROUNDS = 15
_MOST = 10_000_000  # T · P of a step: peers take a minute for more


def _checked(method: Method) -> Method:
    check(method)
    return method


class Steps:
    """A multilayer perceptron with small batches: next to the surgery there is little else."""

    params = _MLP
    param_names = ("T", "P", "method")
    timeout = 300

    def setup(self, num_tasks: int, num_parameters: int, name: str) -> None:
        if num_tasks * num_parameters > _MOST:
            raise NotImplementedError  # asv then leaves it out
        self.method = _checked(METHODS[name](make_mlp(num_tasks, num_parameters)))

    def time_step(self, num_tasks: int, num_parameters: int, name: str) -> None:
        self.method()


class Ratios:
    """The step by the plain loss sum's, in turns inside one process: noise meets both."""

    params = (*_ONE_P[:2], list(METHODS))
    param_names = ("T", "P", "method")
    timeout = 300
    unit = "× loss-sum"

    def setup(self, num_tasks: int, num_parameters: int, name: str) -> None:
        self.method = _checked(METHODS[name](make_mlp(num_tasks, num_parameters)))
        self.loss_sum = METHODS["loss-sum"](make_mlp(num_tasks, num_parameters))

    def track_ratio(self, num_tasks: int, num_parameters: int, name: str) -> float:
        actions = {"method": Action(self.method), "loss-sum": Action(self.loss_sum)}
        return interleaved(actions, rounds=_ROUNDS).ratio("method", to="loss-sum").median


class Costs:
    """Costs that do not depend on the machine: FLOPs of forwards and backwards, peak memory."""

    params = _ONE_P
    param_names = ("T", "P", "method")
    timeout = 300

    def setup(self, num_tasks: int, num_parameters: int, name: str) -> None:
        self.method = METHODS[name](make_mlp(num_tasks, num_parameters))

    def peakmem_step(self, num_tasks: int, num_parameters: int, name: str) -> None:
        self.method()

    def track_flops(self, num_tasks: int, num_parameters: int, name: str) -> int:
        return count_flops(self.method)

    def track_peak_bytes(self, num_tasks: int, num_parameters: int, name: str) -> int:
        return step_peak_bytes(METHODS[name], make_mlp(num_tasks, num_parameters))


class MiniLM:
    """An encoder of 22.7 M parameters, three tasks, a batch of 8 × 32 tokens each."""

    params = (list(METHODS),)
    param_names = ("method",)
    timeout = 600

    def setup(self, name: str) -> None:
        self.method = _checked(METHODS[name](make_bert(MINILM, 8, 32)))

    def time_step(self, name: str) -> None:
        self.method()


Costs.track_flops.unit = "FLOP"  # type: ignore[attr-defined]
Costs.track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]
