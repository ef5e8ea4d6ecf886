"""The fields of a recipe that `run --set` takes, and which of them a mistaken name may mean."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from benchmarks.multitask_bert.tasks import TASKS


class Field(NamedTuple):
    """One field, or two that go together.

    Args:
        example: what may follow ``--set``.
        meaning: one line, with the choices where there are some.
    """

    example: str
    meaning: str

    @property
    def names(self) -> list[str]:
        """The fields' names.

        Example:
            >>> Field("betas=[0.9,0.98]", "").names
            ['betas']
        """
        return [setting.partition("=")[0] for setting in self.example.split(" --set ")]


FIELDS = (
    Field("lr=2e-5", "learning rate, constant; lr*=10 multiplies the recipe's"),
    Field("epochs=3", "passes of every stage"),
    Field("batch_size=16", "examples a batch, of every task; batch_size.sst=32 of one"),
    Field("method=cagrad", "how the gradients become one: loss-sum, pcgrad, ... (list 'method/*')"),
    Field("method_options.every=4", "an option of the method's class, or of all surgery"),
    Field("sampling.name=annealed --set method=loss-sum", "joint, or one task a step: round-robin, "
          "proportional, annealed, sequential"),
    Field("sampling.epoch=largest", "what ends an epoch: the smallest or largest data set"),
    Field("sampling.epoch=batches --set sampling.num_batches=500", "or a number of steps"),
    Field("sampling.first_epoch=5", "where the stage stands in an annealing over several"),
    Field("sampling.num_epochs=20", "how many epochs that annealing has"),
    Field("pairs.sts=joint-sep", "how a pair is encoded: joint-raw-ids, joint-sep, siamese-concat, "
          "siamese-dot, siamese-cos"),
    Field("pooling=mean", "which vector is the embedding: pooler, cls, mean"),
    Field('heads.sst.layers=["dropout","linear:64","relu","linear:out"]', "a head's layers; D is "
          "the encoder's width"),
    Field("heads.sts.output=tanh-scaled", "what is made of a head's result: none, tanh-scaled, "
          "dot, cos, relu-cos-5, cos-5"),
    Field("losses.sts=mnr --set pairs.sts=siamese-cos --set heads.sts.output=cos", "a task's loss: "
          "cross-entropy; bce; mse, cosine-mse, cosine-embedding, mnr"),
    Field("head_dropout=0.1", "dropout of the heads"),
    Field("encoder_dropout=0.2", "dropout of the encoder's states and attention"),
    Field("betas=[0.9,0.98]", "of AdamW"),
    Field("eps=1e-8", "of AdamW"),
    Field("weight_decay=0.01", "of AdamW"),
    Field("grad_clip=1.0", "largest norm of the combined gradient; null for none"),
    Field('regularisers=[{"name":"smart","options":{"weight":0.02}}]', "terms added to every loss: "
          "smart, bregman; [] for none"),
    Field("selection=sts", "which dev score keeps a checkpoint: mean, normalised, a task, or last"),
    Field("max_length=64", "tokens that an input is cut to"),
    Field("dev_batches.quora=50", "first batches of a dev split that are evaluated while training"),
    Field("weighting=sample", "what counts the same in the sum of the losses: task or sample"),
    Field("reduction=sum", "of all surgery: sum as in the papers, or mean"),
    Field("scope=shared", "of all surgery: shared parameters, or all"),
    Field("monitored=false", "whether a sum of the losses logs conflicts, which costs time"),
    Field("min_label.sts=2.5", "train on examples of at least that label alone"),
    Field("frozen_layers=4", "lowest layers that stay as they are, whose outputs are kept"),
    Field("trainable=heads --set method=loss-sum", "all, or heads for a frozen encoder"),
    Field('stages.0.tasks=["sst","quora"]', "tasks that one stage trains; [] for all"),
    Field("stages.0.start=initial", "where a stage begins: continue, initial, average"),
)  # fmt: skip

# What else people call a field, in small letters without what stands between words.
_ALIASES = {
    "learningrate": "lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "batches": "batch_size",
    "numepochs": "epochs",
    "nepochs": "epochs",
    "optimizer": "method",
    "algorithm": "method",
    "surgery": "method",
    "every": "method_options.every",
    "startstep": "method_options.start_step",
    "granularity": "method_options.granularity",
    "sampler": "sampling.name",
    "numbatches": "sampling.num_batches",
    "dropout": "head_dropout or encoder_dropout",
    "hiddendropout": "encoder_dropout",
    "attentiondropout": "encoder_dropout",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "clip": "grad_clip",
    "clipping": "grad_clip",
    "maxgradnorm": "grad_clip",
    "beta1": "betas",
    "beta2": "betas",
    "epsilon": "eps",
    "maxlen": "max_length",
    "seqlen": "max_length",
    "maxseqlength": "max_length",
    "freeze": "trainable",
    "smart": "regularisers",
    "regularizers": "regularisers",
    **{
        option.replace("-", ""): f"the option --{option}"
        for option in (
            *("data", "encoder", "seeds", "seed", "max-steps", "scale", "device", "threads"),
            *("precision", "out", "eval-every"),
        )
    },
    "steps": "the option --max-steps",
    "model": "the option --encoder",
    "checkpoint": "the option --encoder",
    "dtype": "the option --precision",
    "fp16": "the option --precision",
}


def suggest(name: str) -> str:
    """Says which field a name may mean; empty where nothing comes near.

    Example:
        >>> suggest("learning_rate"), suggest("batchsize"), suggest("poling")
        ('lr', 'batch_size', 'pooling')
    """
    paths = [path.split(".") for each in FIELDS for path in each.names]
    known = {path[-1]: ".".join(path) for path in paths if path[-1] not in TASKS}
    known |= {path[0]: path[0] for path in paths if path[0] != "stages"}
    known = {**_ALIASES, **{word.replace("_", ""): field for word, field in known.items()}}
    compact = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    close = difflib.get_close_matches(compact, known, n=1, cutoff=0.7)
    return known[close[0]] if close else ""
