"""Claims C21 to C30: tasks, losses, regularisation, curves and errors."""

from __future__ import annotations

from benchmarks.multitask_bert.claims.claim import (
    BENTON,
    CHADA,
    FALLING,
    JIANG,
    SAME,
    STALLED,
    WELL,
    WIDE,
    XU,
    Claim,
    higher,
    lower,
)
from benchmarks.multitask_bert.claims.differences import MetricDifference
from benchmarks.multitask_bert.claims.long_pairs import LongPairError
from benchmarks.multitask_bert.claims.trends import LateLoss, LateMetric
from benchmarks.multitask_bert.claims.verdicts import Each, Every, Within

SW_LOSS_SUM = "smet-walker/general-linear-loss-sum"
CJ, CJ_GS = "chada-jolly/baseline", "chada-jolly/gs"
CJ_CS, CJ_BOTH = "chada-jolly/cs", "chada-jolly/cs-gs"
JY, JY_1 = "jiang-yu/baseline", "jiang-yu/finetune-1"
JY_PER_SAMPLE = "control/jiang-yu-baseline-per-sample"
BE_JOINT, BE_PCGRAD = "control/benton-concat-joint", "control/benton-concat-pcgrad"
XU_TUNED, XU_SMART = "xu/dense-tuned", "xu/dense-tuned-smart"
XU_PCGRAD, XU_JOINT = "xu/dense-tuned-smart-pcgrad", "control/xu-smart-round-robin"


def _loses_to_single_tasks(recipe: str) -> Every:
    return Every(
        tuple(higher(task, f"jiang-yu/single-task-{task}", recipe) for task in ("sst", "sts"))
    )


def _over_rates(recipe: str) -> Every:
    errors = (LongPairError(recipe), LongPairError(recipe, against_rest=True))
    return Every(tuple(Within(error, low=0.0) for error in errors))


def _overfits(recipe: str) -> Every:
    return Every(
        (
            Within(LateLoss(recipe), high=FALLING),
            Within(LateMetric("mean", recipe), high=STALLED),
        )
    )


def _leaves_sts_behind(recipe: str) -> Every:
    return Every(
        (
            Within(LateMetric("sts", recipe), high=STALLED),
            Within(LateMetric("sst", recipe), low=0.0),
            Within(LateMetric("quora", recipe), low=0.0),
        )
    )


CLAIMS = (
    Claim(
        "C21",
        "SST and STS are better trained alone than together without surgery.",
        (JIANG,),
        Each(tuple(map(_loses_to_single_tasks, (JY, JY_PER_SAMPLE)))),
        "How the report weights the three losses is not published.",
    ),
    Claim(
        "C22",
        "The cosine embedding loss for STS makes all three tasks worse.",
        (JIANG,),
        Every(tuple(lower(task, "jiang-yu/finetune-2", JY_1) for task in ("sst", "quora", "sts"))),
        "How labels became targets of +1 and -1 is not published.",
    ),
    Claim(
        "C23",
        "A scaled cosine behind a bottleneck lifts STS by far.",
        (JIANG,),
        higher("sts", "jiang-yu/finetune-3", JY_1, WIDE),
    ),
    Claim(
        "C24",
        "SMART raises SST and STS and costs Quora a little.",
        (XU,),
        Every(
            (
                higher("sst", XU_SMART, XU_TUNED),
                higher("sts", XU_SMART, XU_TUNED),
                Within(MetricDifference("quora", XU_SMART, XU_TUNED), -SAME, 0.0),
            )
        ),
    ),
    Claim(
        "C25",
        "On top of SMART, gradient surgery raises all three tasks.",
        (XU,),
        Every(tuple(higher(task, XU_PCGRAD, XU_JOINT) for task in ("sst", "quora", "sts"))),
        "The published rows change the order of the tasks as well.",
    ),
    Claim(
        "C26",
        "The rate and batch size with the best overall score are worse for SST and STS.",
        (XU,),
        Every(
            (
                higher("normalised", XU_TUNED, "xu/dense-default"),
                lower("sst", XU_TUNED, "xu/dense-default"),
                lower("sts", XU_TUNED, "xu/dense-default"),
            )
        ),
        "Elsewhere the report says that a smaller rate is better for SST.",
    ),
    Claim(
        "C27",
        "Late in the training the loss still falls while the dev metrics have stopped.",
        (XU,),
        Each(tuple(map(_overfits, ("xu/baseline-1-hidden", "xu/dense-default", XU_TUNED)))),
    ),
    Claim(
        "C28",
        "Late in the training STS stalls or falls while SST and Quora still rise.",
        (CHADA,),
        Each(tuple(map(_leaves_sts_behind, (CJ, CJ_CS)))),
    ),
    Claim(
        "C29",
        "STS scores are too high on long pairs.",
        (BENTON,),
        Each(
            tuple(
                map(
                    _over_rates,
                    ("benton/ann-concat", "benton/equit-concat", BE_JOINT, BE_PCGRAD, SW_LOSS_SUM),
                )
            )
        ),
    ),
    Claim(
        "C30",
        "On sentiment, a frozen BERT is well below a fine-tuned one.",
        (JIANG,),
        Each(
            tuple(
                lower(
                    task,
                    f"jiang-yu/minbert-{task}-pretrain",
                    f"jiang-yu/minbert-{task}-finetune",
                    WELL,
                )
                for task in ("sst", "cfimdb")
            )
        ),
    ),
)
