"""Controls that the reports lack: each changes one thing of one of their systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmarks.multitask_bert.recipes import chada_jolly
from benchmarks.multitask_bert.recipes.recipe import Head, Recipe, Sampling

PCGRAD = ("stages.0.reduction", "stages.0.scope")


def recipes(systems: Mapping[str, Recipe]) -> Iterator[Recipe]:
    """All controls, made of the systems of the reports."""
    novel = systems["chada-jolly/novel-cs-gs"]
    yield replace(
        novel.in_every_stage(method="loss-sum"),
        id="control/chada-jolly-novel-cs",
        description="chada-jolly/novel-cs-gs without PCGrad",
    )
    no_average = list(novel.stages[3:])
    no_average[0] = replace(no_average[0], start="continue")
    yield replace(
        novel,
        id="control/chada-jolly-novel-without-average",
        description="chada-jolly/novel-cs-gs without the single-task start",
        stages=tuple(no_average),
        assumed=(*chada_jolly.ASSUMED, *PCGRAD),
    )
    yield replace(
        novel,
        id="control/chada-jolly-novel-without-heads-stage",
        description="chada-jolly/novel-cs-gs without the last stage",
        stages=novel.stages[:4],
        assumed=(*chada_jolly.ASSUMED, *(name.replace("0", "3") for name in PCGRAD)),
    )
    baseline, surgery = systems["jiang-yu/baseline"], systems["jiang-yu/finetune-1"]
    yield replace(
        baseline.in_every_stage(batch_size=surgery.stages[0].batch_size),
        id="control/jiang-yu-baseline-2-35-1",
        description="jiang-yu/baseline with the batches of finetune-1",
    )
    yield replace(
        baseline.in_every_stage(weighting="sample"),
        id="control/jiang-yu-baseline-per-sample",
        description="jiang-yu/baseline with every sample, not every task, of the same weight",
    )
    yield replace(
        surgery.in_every_stage(batch_size=baseline.stages[0].batch_size),
        id="control/jiang-yu-finetune-1-8-141-6",
        description="jiang-yu/finetune-1 with the batches of the baseline",
    )
    smart = systems["xu/dense-tuned-smart-pcgrad"]
    yield replace(
        smart.in_every_stage(method="loss-sum"),
        id="control/xu-smart-round-robin",
        description="xu/dense-tuned-smart-pcgrad without PCGrad",
    )
    yield replace(
        smart,
        id="control/xu-pcgrad-without-smart",
        description="xu/dense-tuned-smart-pcgrad without SMART",
        regularisers=(),
    )
    concat, dot = systems["benton/ann-concat"], systems["benton/baseline"]
    yield replace(
        dot.in_every_stage(sampling=Sampling("round-robin", "batches", 3000)),
        id="control/benton-baseline-3000-batches",
        description="benton/baseline with the 3000 batches an epoch of the others",
    )
    yield replace(
        dot.in_every_stage(sampling=Sampling("proportional", "batches", 3000)),
        id="control/benton-equit-dot",
        description="benton/equit-cosim with the dot product and its loss",
    )
    cosine = systems["benton/equit-cosim"]
    yield replace(
        dot,
        id="control/benton-baseline-cosim",
        description="benton/baseline with the cosine in place of the dot product",
        pairs={**dot.pairs, "sts": "siamese-cos"},
        heads={**dot.heads, "sts": Head((), "cos")},
        losses=cosine.losses,
    )
    joint = concat.in_every_stage(sampling=Sampling("joint", "batches", 1000))
    yield replace(
        joint,
        id="control/benton-concat-joint",
        description="benton/ann-concat with a batch of each task in each of 1000 steps an epoch",
    )
    yield replace(
        joint.in_every_stage(method="pcgrad"),
        id="control/benton-concat-pcgrad",
        description="control/benton-concat-joint with PCGrad",
        assumed=(*joint.assumed, *PCGRAD),
    )
