"""Samplers, which say what task a batch comes from, and the loader that they drive."""
