"""Gradients of tasks in memory: rows of a flat buffer, and `.grad`."""
