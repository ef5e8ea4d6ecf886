"""The table's rows on whole steps: ours, the plain sum and the peers; FLOPs; memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.multitask_bert.model.encoder import EncoderConfig
from benchmarks.speed.answers import checked
from benchmarks.speed.measure import Action, Timings, interleaved
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.methods import FAMILY, METHODS, TORCHJD, Method
from benchmarks.speed.targets import Experiment, Finding, Row, Settings, Target, not_measured
from benchmarks.speed.workloads import BERT_BASE, MINILM, TINY, Workload, make_bert

MEMORY_STEPS = 3  # a wrapper lays out its rows in the first, and is itself from the second on


def count_flops(method: Method) -> int:
    """FLOPs of the forwards and backwards of one step, as torch counts them.

    The surgery's own products are left out: ``T² P + 2 T P`` of them, by hand.
    """
    method.zero_grad()
    with FlopCounterMode(display=False) as counter:
        method.backwards()
    method.surgery()
    method.zero_grad()
    return int(counter.get_total_flops())


def step_peak_bytes(make: Callable[[Workload], Method], workload: Workload) -> int:
    """Peak of a training of a few steps above the model itself: graphs, gradients, rows, AdamW."""
    device = workload.device.type
    method = make(workload)

    def train() -> None:
        for _ in range(MEMORY_STEPS):
            method()

    return peak_bytes(train, device)


def step_experiment(
    settings: Settings,
    keys: frozenset[str],
    *,
    workload: Callable[[], Workload],
    label: str,
    prefix: str = "",
) -> dict[str, Finding]:
    """Steps of all methods that the rows need, in one run."""
    names = ["loss-sum", "pcgrad", *(name for name in FAMILY if f"{prefix}{name}-step" in keys)]
    if prefix + "torchjd" in keys:
        names += TORCHJD
    if prefix + "pytorch-optimizer" in keys:
        names += ["plain", "loss-sum monitor", "pytorch_optimizer"]
    right, refused = checked({name: METHODS[name] for name in names}, workload)
    for name in ("loss-sum", "pcgrad"):
        if name in refused:
            return dict.fromkeys(keys, not_measured(f"{name}: {refused[name]}"))
    device = next(iter(right.values())).workload.device.type
    timings = interleaved(
        {name: Action(method) for name, method in right.items()},
        rounds=settings.rounds,
        device=device,
    )
    notes = tuple(_method_lines(label, timings, right, refused))
    peers = {"torchjd": list(TORCHJD), "pytorch-optimizer": ["pytorch_optimizer"]}
    found: dict[str, Finding] = {}
    for key in sorted(keys):
        candidates = [name for name in peers.get(key.removeprefix(prefix), []) if name in right]
        if key.removeprefix(prefix) not in peers:
            name = key.removeprefix(prefix).removesuffix("step").removesuffix("-") or "pcgrad"
            if name in refused:
                found[key] = not_measured(refused[name])
                continue
            ratio = timings.ratio(name, to="loss-sum")
            found[key] = Finding(f"{ratio:.3f}", ratio.median, notes)
        elif candidates:
            best = timings.fastest(candidates)
            ratio = timings.ratio(best, to="pcgrad")
            found[key] = Finding(f"{ratio:.2f} ({best})", ratio.median, notes)
        else:
            reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
            found[key] = not_measured(reasons)
    return found


def flops_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """FLOPs of forwards and backwards, ours and TorchJD's, by the loss sum's."""
    make = partial(_minilm, settings, 16, 48)
    counts = {name: count_flops(METHODS[name](make())) for name in ("loss-sum", "pcgrad", *TORCHJD)}
    ratio = counts["pcgrad"] / counts["loss-sum"]
    peer = min(counts[name] for name in TORCHJD) / counts["loss-sum"]
    measured = f"{ratio:.4f} (TorchJD: {peer:.2f})"
    return dict.fromkeys(keys, Finding(measured, ratio))


def memory_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """Peak memory of ours above the loss sum's, in units of T · P · itemsize."""
    workload = _minilm(settings, 16, 48)
    unit = workload.num_tasks * workload.num_shared * workload.shared()[0].element_size()
    peaks = {
        name: step_peak_bytes(METHODS[name], _minilm(settings, 16, 48))
        for name in ("loss-sum", "pcgrad", *TORCHJD, "pytorch_optimizer")
    }
    above = {name: (peak - peaks["loss-sum"]) / unit for name, peak in peaks.items()}
    notes = [
        f"peak memory of {name}: {peak / 1e6:.0f} MB, {above[name]:+.2f} × T·P·itemsize "
        f"({unit / 1e6:.0f} MB) above the loss sum"
        for name, peak in peaks.items()
    ]
    measured = f"{above['pcgrad']:.3f} × T·P·itemsize"
    return dict.fromkeys(keys, Finding(measured, above["pcgrad"], tuple(notes)))


def _minilm(settings: Settings, batch_size: int, length: int) -> Workload:
    return _bert(settings, MINILM, batch_size, length)


def _bert(
    settings: Settings,
    config: EncoderConfig,
    batch_size: int,
    length: int,
    device: str = "cpu",
    *,
    autocast: bool = False,
) -> Workload:
    if settings.quick:
        config, batch_size, length = TINY, 2, 5
    return make_bert(
        config, batch_size, length, device=device, autocast=autocast, seed=settings.seed
    )


def _method_lines(
    label: str, timings: Timings, right: Mapping[str, Method], refused: Mapping[str, str]
) -> list[str]:
    lines = []
    for name in timings.seconds:
        times = timings.of(name).scaled(1e3)
        ratio = timings.ratio(name, to="loss-sum")
        lines.append(
            f"{label}: step of {name} {times.median:.1f} ms, {ratio:.3f} × loss-sum; "
            f"answer right to {right[name].error:.0e}"
        )
    refusals = (f"{label}: step of {name} not timed, {why}" for name, why in refused.items())
    return [*lines, *refusals]


def _step_of(
    name: str,
    config: EncoderConfig,
    batch_size: int,
    length: int,
    device: str = "cpu",
    prefix: str = "",
) -> Experiment:
    def experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
        def make() -> Workload:
            autocast = device == "cuda"
            return _bert(settings, config, batch_size, length, device, autocast=autocast)

        label = f"{name}, 3 × {batch_size} × {length}"
        return step_experiment(settings, keys, workload=make, label=label, prefix=prefix)

    return experiment


_LONG = _step_of("MiniLM", MINILM, 16, 48)
_LONG_FAMILY = _step_of("MiniLM", MINILM, 16, 48)  # a run of its own, for the memory of so many
_SHORT = _step_of("MiniLM", MINILM, 8, 32, prefix="short-")
_BASE = _step_of("BERT-base", BERT_BASE, 32, 64, "cuda", "bert-base-")
ROWS = [
    Row("step", "PCGrad step / LossSum step, MiniLM, 3 × 16 × 48, fp32", Target("≤", 1.05), "cpu",
        _LONG),
    *(
        Row(f"{name}-step", f"{member.title} step / LossSum step, the same", Target("≤", 1.06),
            "cpu", _LONG_FAMILY)
        for name, member in FAMILY.items() if name != "pcgrad"
    ),
    Row("short-step", "PCGrad step / LossSum step, 3 × 8 × 32", Target("≤", 1.10), "cpu", _SHORT),
    Row("torchjd", "TorchJD's best step / ours, MiniLM, 3 × 16 × 48, fp32", Target("≥", 2), "cpu",
        _LONG),
    Row("pytorch-optimizer", "pytorch_optimizer's PCGrad step / ours, the same",
        Target("≥", 2.5), "cpu", _LONG),
    Row("short-torchjd", "TorchJD's best step / ours, 3 × 8 × 32", Target("≥", 2), "cpu", _SHORT),
    Row("short-pytorch-optimizer", "pytorch_optimizer's PCGrad step / ours, 3 × 8 × 32",
        Target("≥", 2.5), "cpu", _SHORT),
    Row("flops", "FLOPs of PCGrad's forwards and backwards / LossSum's", Target("=", 1.0), "cpu",
        flops_experiment),
    Row("memory", "peak memory above LossSum", Target("≤", 1.05, " × T·P·itemsize"), "cpu",
        memory_experiment),
]  # fmt: skip
CUDA_ROWS = [
    Row("bert-base-step", "PCGrad step / LossSum step, BERT-base, bf16 autocast, 3 × 32 × 64",
        Target("≤", 1.05), "cuda", _BASE),
    Row("bert-base-torchjd", "TorchJD's best step / ours, the same", Target("≥", 2), "cuda",
        _BASE),
]  # fmt: skip
