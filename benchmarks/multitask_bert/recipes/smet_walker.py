"""Graciela Smet and Nick Walker, "BERT Multi-Task Cosine Surgery"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Stage

TASKS = ("sst", "quora", "sts")
# Not in the report; the starter code of the course that it was written in has them.
ASSUMED = (
    "pooling",
    "encoder_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "selection",
    "max_length",
    "stages.0.lr",
    "stages.0.batch_size",
    "stages.0.sampling.epoch",
)
LEARNABLE_LAYER = ("linear:D", "relu", "dropout")


def recipes() -> Iterator[Recipe]:
    """All systems of the report, in its order."""
    general = general_linear_loss_sum()
    cosine = replace(
        general,
        id="smet-walker/v1-dropout-0.3",
        description="variation 1: cosine of two embeddings for STS, sum of the losses",
        pairs={**general.pairs, "sts": "siamese-cos"},
        heads={**general.heads, "sts": Head(layers=(), output="relu-cos-5")},
        assumed=ASSUMED,
    )
    surgery = _with_surgery(
        general,
        id="smet-walker/v2-dropout-0.3",
        description="variation 2: linear heads on joint pairs, PCGrad",
    )
    yield general
    yield replace(
        general,
        id="smet-walker/baseline-untrained",
        description="random linear heads on the pretrained encoder, no training",
        stages=(replace(general.stages[0], epochs=0, method="none"),),
        selection="last",
        assumed=("pooling", "encoder_dropout", "head_dropout", "max_length"),
    )
    for base, name, text in ((cosine, "v1", "variation 1"), (surgery, "v2", "variation 2")):
        yield base
        for rate in (0.5, 0.8):
            yield replace(
                base,
                id=f"smet-walker/{name}-dropout-{rate}",
                description=f"{text} with a head dropout of {rate}",
                head_dropout=rate,
            )
        yield replace(
            base.in_every_stage(epochs=20),
            id=f"smet-walker/{name}-epochs-20",
            description=f"{text} for 20 epochs",
        )
        if base is cosine:
            yield replace(
                _with_layers(base, 1, ("sts",)),
                id="smet-walker/v1-ll1-sts",
                description="variation 1 with a learnable layer in the STS head",
            )
        for number in (1, 2):
            yield replace(
                _with_layers(base, number, TASKS),
                id=f"smet-walker/{name}-ll{number}-all",
                description=f"{text} with {number} learnable layer(s) in every head",
            )
    yield replace(
        _with_layers(cosine, 1, ("sts",)).in_every_stage(epochs=30),
        id="smet-walker/v1-holy-grail",
        description="variation 1: STS learnable layer, dropout 0.5, 30 epochs (10 in its table)",
        head_dropout=0.5,
    )
    yield replace(
        _with_layers(surgery, 2, TASKS).in_every_stage(epochs=30),
        id="smet-walker/v2-holy-grail",
        description="variation 2: two learnable layers in every head, dropout 0.5, 30 epochs",
        head_dropout=0.5,
    )
    yield _with_surgery(
        cosine,
        id="smet-walker/v3-cosine-pcgrad",
        description="variation 3: cosine of two embeddings for STS, PCGrad",
    )


def general_linear_loss_sum() -> Recipe:
    """The report's starting point, of which it prints no number."""
    return Recipe(
        id="smet-walker/general-linear-loss-sum",
        description="linear heads on joint pairs, sum of the losses",
        tasks=TASKS,
        pairs={"quora": "joint-raw-ids", "sts": "joint-raw-ids"},
        heads=dict.fromkeys(TASKS, Head()),
        losses={"sst": "cross-entropy", "quora": "bce", "sts": "mse"},
        stages=(Stage(batch_size=dict.fromkeys(TASKS, 8)),),
        assumed=(*ASSUMED, "head_dropout", "stages.0.epochs"),
    )


def _with_surgery(recipe: Recipe, id: str, description: str) -> Recipe:
    """Put PCGrad into a recipe, in the form of the implementation that the report names.

    It takes the mean, over the vector of all parameters.
    """
    return replace(
        recipe.in_every_stage(method="pcgrad", reduction="mean", scope="all"),
        id=id,
        description=description,
        assumed=(*ASSUMED, "stages.0.reduction", "stages.0.scope"),
    )


def _with_layers(recipe: Recipe, number: int, tasks: tuple[str, ...]) -> Recipe:
    """Learnable layers before what each head has."""
    heads = {
        task: replace(head, layers=LEARNABLE_LAYER * number * (task in tasks) + head.layers)
        for task, head in recipe.heads.items()
    }
    return replace(recipe, heads=heads)
