"""minBERT with a head for each task, its losses and its regularisers."""
