"""The minBERT multi-task benchmark: sentiment, paraphrase and similarity on one encoder."""
