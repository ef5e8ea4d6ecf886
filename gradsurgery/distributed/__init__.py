"""Gradients of several processes with the same parameters."""
