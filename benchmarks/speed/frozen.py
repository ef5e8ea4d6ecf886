"""The trainer's upper two layers on kept outputs of the lower ones, beside all layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.multitask_bert.model.kept import KeptOutputs
from benchmarks.speed.answers import TOLERANCE, WrongAnswerError
from benchmarks.speed.measure import Action, Timings, interleaved
from benchmarks.speed.targets import Finding, Row, Settings, Target, not_measured
from benchmarks.speed.trainer import PRECISIONS, OurTrainer, Sizes, some_examples

PARTS = ("training", "evaluation")
_NUM_TRAINED = 2  # layers, from above


def compare(
    data: Path,
    encoder: Path,
    *,
    sizes: Sizes,
    rounds: int,
    seed: int = 0,
    precisions: Sequence[str] = tuple(PRECISIONS),
    parts: Sequence[str] = PARTS,
) -> tuple[Timings, dict[str, int], dict[str, float]]:
    """Times the training of all layers and of the upper ones in turns, over the same examples.

    Args:
        data, encoder, sizes, rounds, seed, precisions: as in :func:`trainer.compare`.
        parts: of ``PARTS``.

    Returns:
        Timings of actions named ``all training fp32``, ``upper training fp32`` and so on; the
        number of samples of a turn of each part; by precision the seconds that it took to make the
        outputs of all samples once, which no timing has in it.

    Raises:
        WrongAnswerError: the kept outputs lead to another answer; nothing is timed then.
    """
    train, dev = some_examples(data, sizes, seed)
    every = OurTrainer(encoder, train, dev, sizes, seed)
    actions, making = {}, {}
    for precision in precisions:
        upper = OurTrainer(encoder, train, dev, sizes, seed, _NUM_TRAINED)
        upper.model.kept = KeptOutputs()
        making[precision] = make_outputs(upper, precision)
        if precision == "fp32":
            check_outputs(upper)
        for part in parts:
            for name, trainer in (("all", every), ("upper", upper)):
                run = trainer.train if part == "training" else trainer.evaluate
                actions[f"{name} {part} {precision}"] = Action(partial(run, PRECISIONS[precision]))
    timings = interleaved(actions, rounds=rounds)
    splits = dict(zip(PARTS, (train, dev), strict=True))
    numbers = {part: sum(len(x.examples) for x in splits[part].values()) for part in PARTS}
    return timings, numbers, making


def make_outputs(trainer: OurTrainer, precision: str) -> float:
    """Fills the trainer's kept outputs; returns the seconds that took."""
    started = time.perf_counter()
    kept = trainer.model.kept
    assert kept is not None
    training = {task: loader.tokenized for task, loader in trainer.loaders.items()}
    with PRECISIONS[precision]():
        for split in (*training.values(), *trainer.dev.values()):
            for places in torch.arange(len(split)).split(trainer.sizes.eval_batch_size):
                kept.of(trainer.model.encoder, split.batch(places).first)
    return time.perf_counter() - started


def check_outputs(trainer: OurTrainer) -> None:
    """Compares predictions on kept outputs with those of a pass through all layers.

    Raises:
        WrongAnswerError: they disagree.
    """
    model = trainer.model.eval()
    kept = model.kept
    for split in trainer.dev.values():
        batch = split.batch(torch.arange(min(8, len(split))))
        with torch.no_grad():
            found = model(batch)
            model.kept = None
            expected = model(batch)
            model.kept = kept
        error = float((found - expected).norm() / expected.norm())
        if not error <= TOLERANCE:
            raise WrongAnswerError(
                f"kept outputs: must lead to what all layers give, found a relative error of "
                f"{error:.3g}"
            )


def frozen_experiment(settings: Settings, keys: frozenset[str]) -> dict[str, Finding]:
    """Samples a second of both, in float32 and in bfloat16."""
    if settings.data is None or settings.encoder is None:
        return dict.fromkeys(keys, not_measured("needs --data and --encoder"))
    sizes = Sizes(2, 4, 1, 8) if settings.quick else Sizes()
    precisions, parts = (
        [name for name in names if any(name in key for key in keys)]
        for names in (PRECISIONS, PARTS)
    )
    timings, numbers, making = compare(
        settings.data,
        settings.encoder,
        sizes=sizes,
        rounds=settings.rounds,
        seed=settings.seed,
        precisions=precisions,
        parts=parts,
    )
    found = {}
    for key in keys:
        _, part, precision = key.split("-")
        names = [f"{name} {part} {precision}" for name in ("all", "upper")]
        ratio = timings.ratio(names[0], to=names[1])
        rates = [numbers[part] / timings.of(name).median for name in names]
        note = (
            f"frozen layers, {precision}: the outputs of all {sum(numbers.values())} samples were "
            f"made once in {making[precision]:.2f} s, which is not in the ratios"
        )
        measured = f"{ratio:.2f} ({rates[1]:.1f} / {rates[0]:.1f} samples/s)"
        found[key] = Finding(measured, ratio.median, (note,))
    return found


ROWS = [
    Row(f"frozen-{part}-{precision}",
        f"trainer, upper {_NUM_TRAINED} layers on kept outputs / all layers, {part} samples/s, "
        f"{precision}", Target("≥", bound), "cpu", frozen_experiment)
    for part, bound in (("training", 3), ("evaluation", 2))
    for precision in PRECISIONS
]  # fmt: skip
