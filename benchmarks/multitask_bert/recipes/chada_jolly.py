"""Chada and Jolly: cosine similarity, gradient surgery, and a regime of three steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Sampling, Stage

TASKS = ("sst", "quora", "sts")
ASSUMED = (
    "pooling",
    "encoder_dropout",
    "head_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "selection",
    "max_length",
)
SURGERY_ASSUMED = ("reduction", "scope")
# The hidden width is not stated, nor where the dropout is.
HEAD = Head(("dropout", "linear:D", "relu", "linear:out"))
COSINE = Head((), "relu-cos-5")


def recipes() -> Iterator[Recipe]:
    """All systems of the report, in its order."""
    baseline = Recipe(
        id="chada-jolly/baseline",
        description="linear-ReLU-linear heads on concatenated embeddings, sum of the losses",
        tasks=TASKS,
        pairs={"quora": "siamese-concat", "sts": "siamese-concat"},
        heads=dict.fromkeys(TASKS, HEAD),
        losses={"sst": "cross-entropy", "quora": "bce", "sts": "mse"},
        stages=(
            Stage(
                epochs=5,
                batch_size=dict.fromkeys(TASKS, 16),
                sampling=Sampling("joint", "largest"),
            ),
        ),
        head_dropout=0.1,
        assumed=(*ASSUMED, "stages.0.epochs"),
    )
    cosine = replace(
        baseline,
        id="chada-jolly/cs",
        description="the baseline with the cosine of two embeddings for STS",
        pairs={**baseline.pairs, "sts": "siamese-cos"},
        heads={**baseline.heads, "sts": COSINE},
    )
    yield baseline
    yield _with_surgery(baseline, "chada-jolly/gs", "the baseline with PCGrad")
    yield cosine
    surgery = _with_surgery(cosine, "chada-jolly/cs-gs", "cosine for STS, PCGrad")
    yield surgery
    yield _without_dropout(surgery)
    novel = replace(
        surgery,
        id="chada-jolly/novel-cs-gs",
        description="single tasks, average of their encoders, PCGrad, then heads alone (1+3+1)",
        stages=novel_stages(surgery.stages[0]),
        assumed=(
            *ASSUMED,
            *(f"stages.3.{name}" for name in SURGERY_ASSUMED),
            *(f"stages.4.{name}" for name in SURGERY_ASSUMED),
        ),
    )
    yield novel
    yield _without_dropout(novel)


def novel_stages(multitask: Stage) -> tuple[Stage, ...]:
    """A model for each task from the same start, the average of their encoders with each one's
    head, everything on all tasks, the heads alone."""
    alone = tuple(
        replace(
            multitask,
            epochs=1,
            method="loss-sum",
            tasks=(task,),
            batch_size={task: multitask.batch_size[task]},
            start="initial",
        )
        for task in TASKS
    )
    return (
        *alone,
        replace(multitask, epochs=3, start="average"),
        # The cosine has nothing to train.
        replace(multitask, epochs=1, trainable="heads", tasks=("sst", "quora")),
    )


def _with_surgery(recipe: Recipe, id: str, description: str) -> Recipe:
    return replace(
        recipe.in_every_stage(method="pcgrad"),
        id=id,
        description=description,
        assumed=(*recipe.assumed, *(f"stages.0.{name}" for name in SURGERY_ASSUMED)),
    )


def _without_dropout(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        id=f"{recipe.id}-no-dropout",
        description=f"{recipe.description}, no dropout",
        head_dropout=0.0,
        encoder_dropout=0.0,
        assumed=tuple(name for name in recipe.assumed if name != "head_dropout"),
    )
