"""The values that fields of a recipe have: every choice that a system of the reports makes."""

PAIR_ENCODINGS = ("joint-raw-ids", "joint-sep", "siamese-concat", "siamese-dot", "siamese-cos")
POOLINGS = ("pooler", "cls", "mean")
OUTPUTS = ("none", "tanh-scaled", "dot", "cos", "relu-cos-5", "cos-5")
STARTS = ("continue", "initial", "average")
REGULARISERS = ("smart", "bregman")
LOSSES = {
    "classes": ("cross-entropy",),
    "binary": ("bce",),
    "score": ("mse", "cosine-mse", "cosine-embedding", "mnr"),
}
SAMPLINGS = ("joint", "round-robin", "proportional", "annealed", "sequential")
EPOCHS = ("smallest", "largest", "batches")
SELECTIONS = ("mean", "normalised", "last")  # or one of the recipe's tasks
