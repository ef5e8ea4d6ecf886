"""Claims C10 to C20: sampling, pair encodings, heads, dropout and stages."""

from __future__ import annotations

from benchmarks.multitask_bert.claims.claim import (
    BENTON,
    CHADA,
    SAME,
    SW,
    WIDE,
    Claim,
    higher,
    lower,
    no_gain,
    same,
)
from benchmarks.multitask_bert.claims.differences import MetricDifference
from benchmarks.multitask_bert.claims.verdicts import Each, Every, Within

SW_LOSS_SUM = "smet-walker/general-linear-loss-sum"
SW_COSINE = "smet-walker/v1-dropout-0.3"
SW_PCGRAD = "smet-walker/v2-dropout-0.3"
CJ_CS, CJ_BOTH = "chada-jolly/cs", "chada-jolly/cs-gs"
CJ_NOVEL = "chada-jolly/novel-cs-gs"


CLAIMS = (
    Claim(
        "C10",
        "Annealed sampling is slightly better than proportional sampling.",
        (BENTON,),
        Each(
            tuple(
                Within(
                    MetricDifference("normalised", f"benton/ann-{name}", f"benton/equit-{name}"),
                    0.0,
                    SAME,
                )
                for name in ("concat", "cosim", "cosim-mnr")
            )
        ),
    ),
    Claim(
        "C11",
        "For STS, encoding the pair jointly beats the cosine of two embeddings by far.",
        (BENTON,),
        Each(
            (
                higher("sts", "benton/ann-concat", "benton/ann-cosim", WIDE),
                higher("sts", "benton/equit-concat", "benton/equit-cosim", WIDE),
                higher("sts", SW_LOSS_SUM, SW_COSINE, WIDE),
            )
        ),
        "An encoder that was trained for the cosine of sentences is no test of it.",
    ),
    Claim(
        "C12",
        "Ranking pairs in the first half of the training adds nothing to the cosine for STS.",
        (BENTON,),
        Each(
            (
                no_gain("sts", "benton/ann-cosim-mnr", "benton/ann-cosim"),
                no_gain("sts", "benton/equit-cosim-mnr", "benton/equit-cosim"),
            )
        ),
    ),
    Claim(
        "C13",
        "For STS, the cosine of two embeddings is worse than their dot product.",
        (BENTON,),
        Each(
            (
                lower("sts", "benton/equit-cosim", "control/benton-equit-dot"),
                lower("sts", "control/benton-baseline-cosim", "benton/baseline"),
            )
        ),
        "Only the report's table says it, of rows that differ in sampling and budget too.",
    ),
    Claim(
        "C14",
        "The dropout rate of the heads hardly matters.",
        (SW,),
        Each(
            tuple(
                Every(
                    tuple(
                        same("mean", f"smet-walker/{name}-dropout-{first}", f"{base}")
                        for first in ("0.5", "0.8")
                    )
                )
                for name, base in (("v1", SW_COSINE), ("v2", SW_PCGRAD))
            )
        ),
    ),
    Claim(
        "C15",
        "The models are better without dropout.",
        (CHADA,),
        Each(
            tuple(higher("mean", f"{base}-no-dropout", base) for base in (CJ_BOTH, CJ_NOVEL)),
        ),
        "Both the heads' and the encoder's dropout go.",
    ),
    Claim(
        "C16",
        "A layer before the cosine raises STS, and layers in all heads gain nothing.",
        (SW,),
        Every(
            (
                higher("sts", "smet-walker/v1-ll1-sts", SW_COSINE),
                no_gain("mean", "smet-walker/v1-ll1-all", SW_COSINE),
                no_gain("mean", "smet-walker/v1-ll2-all", SW_COSINE),
            )
        ),
    ),
    Claim(
        "C17",
        "With gradient surgery and linear heads, further layers hardly matter.",
        (SW,),
        Every(tuple(same("mean", f"smet-walker/v2-ll{n}-all", SW_PCGRAD) for n in (1, 2))),
        "The published overall of the second does not fit its own metrics.",
    ),
    Claim(
        "C18",
        "Twenty epochs are better than ten.",
        (SW,),
        Each(
            (
                higher("mean", "smet-walker/v1-epochs-20", SW_COSINE),
                higher("mean", "smet-walker/v2-epochs-20", SW_PCGRAD),
            )
        ),
        "The best of more evaluations is higher by chance already.",
    ),
    Claim(
        "C19",
        "The average of three single-task encoders is a better start than the pretrained one.",
        (CHADA,),
        Each(
            (
                higher("mean", CJ_NOVEL, "control/chada-jolly-novel-without-average"),
                higher("mean", CJ_NOVEL, CJ_BOTH),
                higher("mean", f"{CJ_NOVEL}-no-dropout", f"{CJ_BOTH}-no-dropout"),
            )
        ),
        "Against the control only the start differs, and its epochs come on top.",
    ),
    Claim(
        "C20",
        "Training the heads alone at the end adds something.",
        (CHADA,),
        higher("mean", CJ_NOVEL, "control/chada-jolly-novel-without-heads-stage"),
        "The best checkpoint is kept, so the stage cannot lose; the cosine has nothing to train.",
    ),
)
