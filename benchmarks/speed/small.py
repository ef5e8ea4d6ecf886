"""The table's rows on small networks and many tasks, where the host's work counts."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.speed.answers import checked
from benchmarks.speed.measure import Action, interleaved
from benchmarks.speed.methods import METHODS, TORCHJD
from benchmarks.speed.targets import Experiment, Finding, Row, Settings, Target, not_measured
from benchmarks.speed.workloads import NUM_OBSERVATIONS, Workload, make_control

_WORK = 3e8  # of T · P · B in each timing: one step of a small network is too short for a clock


@dataclass(frozen=True)
class Size:
    """A network of about ``2 width²`` parameters, and what a step may cost at most.

    Args:
        num_tasks: T.
        width: of its layers.
        batch_size: of each task.
        most: what PCGrad's step may cost, in those of the plain loop.
    """

    num_tasks: int
    width: int
    batch_size: int
    most: float

    @property
    def num_parameters(self) -> int:
        return self.width * (NUM_OBSERVATIONS + 1 + 2 * (self.width + 1))

    @property
    def num_steps(self) -> int:
        """Steps in each timing."""
        return max(1, round(_WORK / (self.num_tasks * self.num_parameters * self.batch_size)))

    @property
    def key(self) -> str:
        return f"small-{self.num_tasks}-{self.width}"

    def workload(self) -> Workload:
        return make_control(self.num_tasks, self.width, self.batch_size)


SIZES = (Size(3, 128, 32, 1.5), Size(10, 400, 128, 1.25), Size(50, 400, 64, 1.35),
         Size(40, 64, 16, 1.4))  # fmt: skip
_SUM_MOST = 1.1


def _experiment(size: Size) -> Experiment:
    def experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
        workload, num_steps = size.workload, size.num_steps
        if settings.quick:
            workload, num_steps = Size(3, 8, 2, size.most).workload, 1
        names = ("plain loop", "joint batch", "loss-sum", "pcgrad", *TORCHJD)
        right, refused = checked({name: METHODS[name] for name in names}, workload)
        if missing := [n for n in ("plain loop", "loss-sum", "pcgrad") if n in refused]:
            return dict.fromkeys(keys, not_measured(f"{missing[0]}: {refused[missing[0]]}"))
        timings = interleaved(
            {name: Action(lambda method=method: [method() for _ in range(num_steps)])  # type: ignore[misc]
             for name, method in right.items()},
            rounds=settings.rounds,
        )  # fmt: skip
        notes = [
            f"{size.key}: step of {name} {timings.of(name).median * 1e3 / num_steps:.3f} ms, "
            f"{timings.ratio(name, to='plain loop'):.2f} × plain loop, "
            f"{timings.ratio(name, to='joint batch'):.2f} × joint batch"
            for name in right
        ]
        notes += [f"{size.key}: step of {name} not timed, {why}" for name, why in refused.items()]
        found = {}
        for key in keys:
            name = "loss-sum" if key.endswith("-sum") else "pcgrad"
            ratio = timings.ratio(name, to="plain loop")
            found[key] = Finding(f"{ratio:.2f}", ratio.median, tuple(notes))
        return found

    return experiment


def _rows(size: Size) -> list[Row]:
    experiment = _experiment(size)
    at = f"T = {size.num_tasks}, {size.num_parameters / 1e3:.0f} k, {size.batch_size} a task"
    return [
        Row(size.key, f"PCGrad step in blocks / plain loop, {at}", Target("≤", size.most), "cpu",
            experiment),
        Row(f"{size.key}-sum", "LossSum step / plain loop, the same", Target("≤", _SUM_MOST), "cpu",
            experiment),
    ]  # fmt: skip


ROWS = [row for size in SIZES for row in _rows(size)]
