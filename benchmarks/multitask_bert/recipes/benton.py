"""Benton: annealed and proportional sampling, encodings of STS, multiple negatives ranking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Sampling, Stage

TASKS = ("sst", "quora", "sts")
ASSUMED = (
    "pooling",
    "encoder_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "max_length",
    "pairs.quora",
)


def recipes() -> Iterator[Recipe]:
    """All systems of the report, in its order."""
    for name, sampling in (("ann", "annealed"), ("equit", "proportional")):
        stage = Stage(
            epochs=10,
            batch_size=dict.fromkeys(TASKS, 32),
            sampling=Sampling(sampling, "batches", 3000),
        )
        concat = _recipe(
            f"benton/{name}-concat",
            f"{sampling} sampling, STS by a joint pair",
            stage,
            pair="joint-sep",
            head=Head(("dropout", "linear:out"), "tanh-scaled"),
            loss="mse",
            assumed=("pairs.sts",),
        )
        cosine = _recipe(
            f"benton/{name}-cosim",
            f"{sampling} sampling, STS by the cosine of two embeddings",
            stage,
            pair="siamese-cos",
            head=Head((), "cos"),
            loss="cosine-mse",
            assumed=("losses.sts",),
        )
        first = replace(stage.sampling, num_epochs=10)
        ranking = replace(
            stage, epochs=5, sampling=first, losses={"sts": "mnr"}, min_label={"sts": 4.0}
        )
        regression = replace(stage, epochs=5, sampling=replace(first, first_epoch=5))
        yield concat
        yield cosine
        yield replace(
            cosine,
            id=f"benton/{name}-cosim-mnr",
            description=f"{cosine.description}, ranked in the first half of the epochs",
            stages=(ranking, regression),
        )
    yield _recipe(
        "benton/baseline",
        "alternating tasks until the smallest ends, STS by the dot product of two embeddings",
        Stage(
            epochs=10,
            batch_size=dict.fromkeys(TASKS, 32),
            sampling=Sampling("round-robin", "smallest"),
        ),
        pair="siamese-dot",
        head=Head((), "dot"),
        loss="mse",
        assumed=("heads.sts",),
    )


def _recipe(
    id: str,
    description: str,
    stage: Stage,
    *,
    pair: str,
    head: Head,
    loss: str,
    assumed: tuple[str, ...],
) -> Recipe:
    linear = Head(("dropout", "linear:out"))
    return Recipe(
        id=id,
        description=description,
        tasks=TASKS,
        pairs={"quora": "joint-sep", "sts": pair},
        heads={"sst": linear, "quora": linear, "sts": head},
        losses={"sst": "cross-entropy", "quora": "bce", "sts": loss},
        stages=(stage,),
        head_dropout=0.3,
        selection="normalised",
        dev_batches={"quora": 1000},
        assumed=(*ASSUMED, *assumed),
    )
