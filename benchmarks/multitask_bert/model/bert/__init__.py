"""Checkpoints in BERT's format, read into minBERT."""
