"""Three ways to get each task's gradient into its row: their time and their peak memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.multitask_bert.page.markdown import table
from benchmarks.speed.answers import TOLERANCE, WrongAnswerError, task_rows
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.workloads import Workload


class Capture:
    """Forward and backward of every task; no gradient is kept apart.

    Args:
        workload: its own; heads keep their gradients, which are forgotten.
    """

    has_rows = False

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.rows = torch.empty(0)
        if self.has_rows:
            self._make_rows()

    def __call__(self) -> None:
        for task in range(self.workload.num_tasks):
            self.capture(task)
        for parameter in (*self.workload.shared(), *self.workload.separate()):
            parameter.grad = None

    def capture(self, task: int) -> None:
        """Makes one task's gradient."""
        self.workload.loss(task).backward()

    def _make_rows(self) -> None:
        shared = self.workload.shared()
        self.rows = torch.empty(
            self.workload.num_tasks,
            self.workload.num_shared,
            dtype=shared[0].dtype,
            device=self.workload.device,
        )
        sizes = [parameter.numel() for parameter in shared]
        self.views = [
            [part.view_as(p) for part, p in zip(row.split(sizes), shared, strict=True)]
            for row in self.rows
        ]


class GradViews(Capture):
    """``.grad`` is a view of a zeroed row, to which autograd adds."""

    has_rows = True

    def capture(self, task: int) -> None:
        self.rows[task].zero_()
        for parameter, view in zip(self.workload.shared(), self.views[task], strict=True):
            parameter.grad = view
        self.workload.loss(task).backward()


class CopyAfter(Capture):
    """One foreach copy into the row after the backward."""

    has_rows = True

    def capture(self, task: int) -> None:
        self.workload.loss(task).backward()
        shared = self.workload.shared()
        grads = [parameter.grad for parameter in shared if parameter.grad is not None]
        torch._foreach_copy_(self.views[task], grads)
        for parameter in shared:
            parameter.grad = None


class CopyHooks(Capture):
    """A hook copies each gradient as soon as it is there, and drops it."""

    has_rows = True

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.task = 0
        for place, parameter in enumerate(workload.shared()):
            parameter.register_post_accumulate_grad_hook(self._hook(place))

    def capture(self, task: int) -> None:
        self.task = task
        self.workload.loss(task).backward()

    def _hook(self, place: int) -> Callable[[Tensor], None]:
        def copy(parameter: Tensor) -> None:
            with torch.no_grad():
                self.views[self.task][place].copy_(parameter.grad)
            parameter.grad = None

        return copy


WAYS: dict[str, type[Capture]] = {
    "no rows (loss sum)": Capture,
    "rows as .grad views": GradViews,
    "foreach copy after backward": CopyAfter,
    "copy in post-accumulate hooks": CopyHooks,
}


def compare(make_workload: Callable[[], Workload], *, rounds: int = 7) -> list[str]:
    """Lines of a table: each way's time, and its peak memory, the rows included.

    Raises:
        WrongAnswerError: a way whose rows are not the tasks' gradients; nothing is timed then.
    """
    ways = {name: way(make_workload()) for name, way in WAYS.items()}
    for name, way in ways.items():
        _check(name, way)
    workload = next(iter(ways.values())).workload
    device = workload.device.type
    timings = interleaved(
        {name: Action(way) for name, way in ways.items()}, rounds=rounds, device=device
    )
    base = "no rows (loss sum)"
    unit = workload.num_tasks * workload.num_shared * workload.shared()[0].element_size()
    peaks = {name: _peak(way, make_workload(), device) for name, way in WAYS.items()}
    cells = [
        [
            name,
            f"{timings.of(name).scaled(1e3):.1f} ms",
            f"{timings.ratio(name, to=base):.3f}",
            f"{peaks[name] / 1e6:.1f} MB",
            f"{(peaks[name] - peaks[base]) / unit:+.3f} × T·P·itemsize",
        ]
        for name in ways
    ]
    header = ["capture", "forwards, backwards, capture", "ratio", "peak memory", "above no rows"]
    return table(header, cells)


def _peak(way: type[Capture], workload: Workload, device: str) -> int:
    def steps() -> None:
        step = way(workload)
        step()
        step()

    return peak_bytes(steps, device)


def _check(name: str, way: Capture) -> None:
    """Compares the rows with what autograd alone gives."""
    for _ in range(2):
        way()
    if not way.has_rows:
        return
    expected = task_rows(way.workload, way.workload.shared())
    error = float((way.rows - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise WrongAnswerError(
            f"{name}: rows must be the tasks' gradients, found error {error:.3g}"
        )
