"""Xu: dense heads, two stages, SMART regularisation, PCGrad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Regulariser, Sampling, Stage

TASKS = ("sst", "quora", "sts")
ASSUMED = (
    "encoder_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "selection",
    "max_length",
    "heads",
)
HIDDEN = ("linear:D", "relu", "dropout")
SMART = Regulariser(
    "smart",
    {"weight": 0.02, "noise_variance": 1e-5, "step_size": 1e-3, "epsilon": 1e-6, "num_steps": 1},
)


def recipes() -> Iterator[Recipe]:
    """All systems of the report, in its order."""
    yield _recipe("xu/baseline-1-hidden", "one hidden layer, one task after the other", 1)
    yield _recipe("xu/dense-default", "two hidden layers, one task after the other", 2)
    tuned = _recipe(
        "xu/dense-tuned", "two hidden layers, tuned rates, one task after the other", 2, tuned=True
    )
    yield tuned
    smart = replace(
        tuned,
        id="xu/dense-tuned-smart",
        description="two hidden layers, tuned rates, SMART, one task after the other",
        regularisers=(SMART,),
        assumed=(*tuned.assumed, "regularisers"),
    )
    yield smart
    yield replace(
        smart.in_every_stage(method="pcgrad", sampling=Sampling("joint", "largest")),
        id="xu/dense-tuned-smart-pcgrad",
        description="two hidden layers, tuned rates, SMART, PCGrad on a batch of each task",
        assumed=(
            *(name for name in smart.assumed if not name.endswith("sampling")),
            *(
                f"stages.{stage}.{name}"
                for stage in (0, 1)
                for name in ("sampling.epoch", "reduction", "scope")
            ),
        ),
    )


def _recipe(id: str, description: str, num_hidden: int, *, tuned: bool = False) -> Recipe:
    size = 16 if tuned else 8
    heads_first = Stage(
        epochs=10,
        lr=1e-3,
        batch_size=dict.fromkeys(TASKS, size),
        sampling=Sampling("sequential"),
        trainable="heads",
    )
    everything = replace(heads_first, lr=5e-6 if tuned else 1e-5, trainable="all")
    unstated = ("sampling",) if tuned else ("sampling", "batch_size")
    return Recipe(
        id=id,
        description=description,
        tasks=TASKS,
        pairs={"quora": "joint-sep", "sts": "joint-sep"},
        heads=dict.fromkeys(TASKS, Head((*HIDDEN * num_hidden, "linear:out"))),
        losses={"sst": "cross-entropy", "quora": "bce", "sts": "mse"},
        stages=(heads_first, everything),
        head_dropout=0.2,
        selection="normalised",
        assumed=(*ASSUMED, *(f"stages.{stage}.{name}" for stage in (0, 1) for name in unstated)),
    )
