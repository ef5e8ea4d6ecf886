"""Jiang and Yu: single tasks, batch sizes in proportion to the data, gradient surgery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Stage

TASKS = ("sst", "quora", "sts")
ASSUMED = (
    "encoder_dropout",
    "betas",
    "eps",
    "weight_decay",
    "grad_clip",
    "selection",
    "max_length",
)
LARGE_BATCHES = {"sst": 8, "quora": 141, "sts": 6}
SMALL_BATCHES = {"sst": 2, "quora": 35, "sts": 1}
LOSSES = {"sst": "cross-entropy", "quora": "bce", "sts": "mse", "cfimdb": "cross-entropy"}
LINEAR = Head(("linear:out",))


def recipes() -> Iterator[Recipe]:
    """All systems of the report, in its order."""
    for task in ("sst", "cfimdb"):
        for option, lr, trainable in (("pretrain", 1e-3, "heads"), ("finetune", 1e-5, "all")):
            yield Recipe(
                id=f"jiang-yu/minbert-{task}-{option}",
                description=f"one sentiment task, the starter code's option {option}",
                tasks=(task,),
                pairs={},
                heads={task: Head()},
                losses={task: LOSSES[task]},
                stages=(Stage(epochs=10, lr=lr, batch_size={task: 8}, trainable=trainable),),
                head_dropout=0.3,
                selection=task,
                assumed=(*ASSUMED, "stages.0.batch_size"),
            )
    baseline = Recipe(
        id="jiang-yu/baseline",
        description="linear heads on concatenated embeddings, sum of the losses, batches 8/141/6",
        tasks=TASKS,
        pairs={"quora": "siamese-concat", "sts": "siamese-concat"},
        heads=dict.fromkeys(TASKS, LINEAR),
        losses={task: LOSSES[task] for task in TASKS},
        stages=(Stage(epochs=10, lr=1e-5, batch_size=LARGE_BATCHES),),
        head_dropout=0.3,
        assumed=(*ASSUMED, "stages.0.sampling.epoch", "stages.0.lr"),
    )
    surgery = replace(
        baseline.in_every_stage(method="pcgrad", batch_size=SMALL_BATCHES),
        id="jiang-yu/finetune-1",
        description="the same heads with PCGrad, batches 2/35/1",
        assumed=(*baseline.assumed, "stages.0.reduction", "stages.0.scope"),
    )
    yield baseline
    yield surgery
    yield replace(
        surgery,
        id="jiang-yu/finetune-2",
        description="PCGrad, cosine embedding loss of projected embeddings for STS",
        pairs={**surgery.pairs, "sts": "siamese-cos"},
        heads={**surgery.heads, "sts": Head(("linear:D",), "cos")},
        losses={**surgery.losses, "sts": "cosine-embedding"},
        assumed=(*surgery.assumed, "losses.sts", "heads.sts.output"),
    )
    yield replace(
        surgery,
        id="jiang-yu/finetune-3",
        description="PCGrad, scaled cosine of embeddings through a bottleneck for STS",
        pairs={**surgery.pairs, "sts": "siamese-cos"},
        heads={**surgery.heads, "sts": Head(("linear:100", "linear:D"), "cos-5")},
        assumed=(*surgery.assumed, "heads.sts.output"),
    )
    for task in TASKS:
        name = "para" if task == "quora" else task
        yield replace(
            baseline,
            id=f"jiang-yu/single-task-{name}",
            description=f"the baseline's {name} head and batches, trained alone",
            tasks=(task,),
            pairs={task: baseline.pairs[task]} if task in baseline.pairs else {},
            heads={task: LINEAR},
            losses={task: LOSSES[task]},
            stages=(Stage(epochs=10, lr=1e-5, batch_size={task: LARGE_BATCHES[task]}),),
            selection=task,
            assumed=(*ASSUMED, "stages.0.batch_size", "stages.0.lr"),
        )
