"""Claims C1 to C9: what gradient surgery does, and what gradients are like."""

from __future__ import annotations

from benchmarks.multitask_bert.claims.claim import (
    ANNIHILATED,
    BENTON,
    CHADA,
    JIANG,
    ORTHOGONAL,
    SW,
    TIME_RATIO,
    WIDE,
    XU,
    Claim,
    higher,
    lower,
)
from benchmarks.multitask_bert.claims.differences import ConflictDifference, TimeRatio
from benchmarks.multitask_bert.claims.logged import (
    ConflictExcess,
    KeptNorm,
    LargestCosine,
    LongestGradient,
)
from benchmarks.multitask_bert.claims.verdicts import Each, Every, Within

SW_LOSS_SUM = "smet-walker/general-linear-loss-sum"
SW_COSINE = "smet-walker/v1-dropout-0.3"
SW_PCGRAD = "smet-walker/v2-dropout-0.3"
SW_BOTH = "smet-walker/v3-cosine-pcgrad"
CJ, CJ_GS = "chada-jolly/baseline", "chada-jolly/gs"
CJ_CS, CJ_BOTH = "chada-jolly/cs", "chada-jolly/cs-gs"
JY, JY_1 = "jiang-yu/baseline", "jiang-yu/finetune-1"
JY_SMALL, JY_1_LARGE = "control/jiang-yu-baseline-2-35-1", "control/jiang-yu-finetune-1-8-141-6"
JY_PER_SAMPLE = "control/jiang-yu-baseline-per-sample"
BE_JOINT, BE_PCGRAD = "control/benton-concat-joint", "control/benton-concat-pcgrad"
XU_PCGRAD, XU_JOINT = "xu/dense-tuned-smart-pcgrad", "control/xu-smart-round-robin"


def _quora_harms(recipe: str) -> Every:
    return Every(
        (
            Within(LongestGradient(recipe, "quora"), low=0.5),
            Within(ConflictExcess(recipe), low=0.0),
        )
    )


CLAIMS = (
    Claim(
        "C1",
        "Gradient surgery and a cosine STS head, which work one by one, fail together.",
        (SW,),
        Every((lower("mean", SW_BOTH, SW_COSINE, WIDE), lower("mean", SW_BOTH, SW_PCGRAD, WIDE))),
        "Of the published failure, Quora 0.375 is the accuracy of a constant answer.",
    ),
    Claim(
        "C2",
        "With a cosine STS head, gradient surgery is better than the sum of the losses.",
        (CHADA,),
        Each((higher("mean", CJ_BOTH, CJ_CS), higher("mean", SW_BOTH, SW_COSINE))),
    ),
    Claim(
        "C3",
        "With linear heads on pairs of embeddings, gradient surgery lowers STS.",
        (CHADA,),
        lower("sts", CJ_GS, CJ),
        "Both published rows are close to a constant answer in Quora.",
    ),
    Claim(
        "C4",
        "Gradient surgery makes the shared model better.",
        (SW, JIANG, XU),
        Each(
            (
                higher("mean", SW_PCGRAD, SW_LOSS_SUM),
                higher("mean", JY_1, JY_SMALL),
                higher("mean", JY_1_LARGE, JY),
                higher("normalised", XU_PCGRAD, XU_JOINT),
                higher("normalised", BE_PCGRAD, BE_JOINT),
            )
        ),
        "Unlike the published rows, these differ in the method alone.",
    ),
    Claim(
        "C5",
        "Gradient surgery takes half as long again as the sum of the losses.",
        (CHADA,),
        Each(
            tuple(
                Within(TimeRatio(first, second), *TIME_RATIO)
                for first, second in ((CJ_GS, CJ), (CJ_BOTH, CJ_CS), (SW_PCGRAD, SW_LOSS_SUM))
            )
        ),
    ),
    Claim(
        "C6",
        "The tasks' gradients are close to orthogonal.",
        (CHADA, BENTON),
        Each(
            tuple(
                Within(LargestCosine(id), high=ORTHOGONAL)
                for id in (CJ, CJ_GS, BE_JOINT, BE_PCGRAD, SW_LOSS_SUM, SW_PCGRAD)
            )
        ),
        "These are gradients of single batches, whose noise draws cosines to 0.",
    ),
    Claim(
        "C7",
        "PCGrad takes almost all of the STS gradient away.",
        (CHADA,),
        Each(
            tuple(Within(KeptNorm(id, "sts"), high=ANNIHILATED) for id in (CJ_GS, SW_PCGRAD, JY_1))
        ),
        "It could not where gradients are orthogonal: a projection removes what they share.",
    ),
    Claim(
        "C8",
        "A cosine STS head conflicts less with the other tasks than a linear one.",
        (CHADA,),
        Each(
            tuple(
                Within(ConflictDifference(cosine, linear), high=0.0)
                for cosine, linear in (
                    (CJ_CS, CJ),
                    (CJ_BOTH, CJ_GS),
                    (SW_COSINE, SW_LOSS_SUM),
                    (SW_BOTH, SW_PCGRAD),
                )
            )
        ),
    ),
    Claim(
        "C9",
        "Quora, the largest data set, overrules the gradients of SST and STS.",
        (JIANG,),
        Each(tuple(map(_quora_harms, (JY, JY_SMALL, JY_PER_SAMPLE)))),
        "What it costs them in their metrics is another claim, C21.",
    ),
)
