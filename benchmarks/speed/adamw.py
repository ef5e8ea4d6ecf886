"""Combining inside AdamW's update, block by block, beside combining first: time and peak memory.

The gradient of a block is used while it is in the cache, and never written to the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.answers import WrongAnswerError
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.surgery import MINILM_PARAMETERS
from gradsurgery import kernels

NUM_TASKS = 3
NUM_PARAMETERS = (100_000, 1_000_000, MINILM_PARAMETERS)
BLOCKS = (1 << 14, 1 << 16, 1 << 18)
_TOLERANCE = 1e-5

Work = Callable[[slice, int], None]  # columns and the thread that has them


class CombineFirst:
    """Rows ``[T, P]`` into the first of them, which then is ``.grad`` of torch's optimizer.

    Args:
        rows: the tasks' gradients, ``[T, P]``.
        weights: of their sum, ``[T]``.
    """

    def __init__(self, rows: Tensor, weights: Tensor) -> None:
        self.rows = rows
        self.weights = weights
        self.first = rows[0].clone()
        self.parameter = nn.Parameter(torch.ones_like(rows[0]))
        self.parameter.grad = rows[0]
        self.optimizer = AdamW([self.parameter], lr=1e-3, fused=True)
        self.optimizer.step()  # which makes its state

    def __call__(self) -> None:
        kernels.choose(None, self.rows.device).combine(self.weights, self.rows, self.rows[0])
        self.optimizer.step()

    def put_back(self) -> None:
        """The rows as they were before the step."""
        self.rows[0].copy_(self.first)


class InBlocks(CombineFirst):
    """Each block of columns is combined and goes into torch's fused update at once.

    Args:
        rows, weights: as above.
        block: columns of a block.
        run: does the work on all blocks.
    """

    def __init__(
        self, rows: Tensor, weights: Tensor, *, block: int, run: Callable[[Work, int, int], None]
    ) -> None:
        super().__init__(rows, weights)
        self.block = block
        self.run = run

    def __call__(self) -> None:
        (group,) = self.optimizer.param_groups
        state = self.optimizer.state[self.parameter]
        state["step"] += 1
        numbers = [self.parameter.data, state["exp_avg"], state["exp_avg_sq"]]
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad")}
        num_columns = self.rows.shape[1]
        at_once = 1 if self.run is in_turn else torch.get_num_threads()
        grads = torch.empty(at_once, min(self.block, num_columns))

        def update(columns: slice, thread: int) -> None:
            parameter, mean, square = (part[columns] for part in numbers)
            grad = grads[thread, : len(parameter)]
            torch.mv(self.rows[:, columns].T, self.weights, out=grad)
            torch._fused_adamw_(
                [parameter], [grad], [mean], [square], [], [state["step"]],
                beta1=group["betas"][0], beta2=group["betas"][1], maximize=False, **options,
            )  # fmt: skip

        self.run(update, num_columns, self.block)


def in_turn(work: Work, num_columns: int, block: int) -> None:
    """Works on one block after the other, each on all of torch's threads."""
    with torch.no_grad():
        for start in range(0, num_columns, block):
            work(slice(start, start + block), 0)


def side_by_side(work: Work, num_columns: int, block: int) -> None:
    """Works on as many blocks at a time as torch has threads."""
    starts = range(0, num_columns, block)
    num_threads = min(torch.get_num_threads(), len(starts))
    if num_threads == 1:
        in_turn(work, num_columns, block)
        return

    def share(thread: int) -> None:
        with torch.no_grad():
            first, last = (len(starts) * i // num_threads for i in (thread, thread + 1))
            for start in starts[first:last]:
                work(slice(start, start + block), thread)

    list(_pool(num_threads).map(share, range(num_threads)))


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


_FIRST = "combine, then AdamW(fused=True)"
WAYS: dict[str, Callable[[Tensor, Tensor], CombineFirst]] = {
    _FIRST: CombineFirst,
    **{
        f"together, blocks of {block:,} {name}": partial(InBlocks, block=block, run=run)
        for block in BLOCKS
        for name, run in (("in turn", in_turn), ("side by side", side_by_side))
    },
}


def compare(num_parameters: Sequence[int] = NUM_PARAMETERS, *, rounds: int = 7) -> list[str]:
    """Lines of a table: each way's time, and its peak above rows, parameters and AdamW's state.

    Raises:
        WrongAnswerError: a way whose parameters are not those of the first; nothing is timed then.
    """
    cells = []
    for count in num_parameters:
        rows = torch.randn(NUM_TASKS, count, generator=torch.Generator().manual_seed(0))
        weights = torch.linspace(1.0, 2.0, NUM_TASKS)
        ways = {name: way(rows, weights) for name, way in WAYS.items()}
        check(ways)
        actions = {name: Action(way, prepare=way.put_back) for name, way in ways.items()}
        timings = interleaved(actions, rounds=rounds, warm_up=2)
        for name, way in ways.items():
            peak = peak_bytes(way) / rows[0].nbytes
            way.put_back()
            milliseconds = timings.of(name).scaled(1e3)
            ratio = timings.ratio(name, to=_FIRST)
            cells.append([f"{count:,}", name, f"{milliseconds:.2f}", f"{ratio:.3f}", f"{peak:.3f}"])
    return table(["P", "way", "ms", "ratio", "peak memory, × P·itemsize"], cells)


def check(ways: dict[str, CombineFirst]) -> None:
    """Checks that two steps of each way lead to the same parameters.

    Raises:
        WrongAnswerError: they do not.
    """
    expected = None
    for name, way in ways.items():
        for _ in range(2):
            way()
            way.put_back()
        found = way.parameter.detach()
        expected = found if expected is None else expected
        error = float((found - expected).norm() / (expected - 1).norm())
        if not error <= _TOLERANCE:
            raise WrongAnswerError(
                f"{name}: parameters must be those of {_FIRST!r}, found an error of {error:.3g}"
            )
