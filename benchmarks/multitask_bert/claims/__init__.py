"""The reports' claims, and what the runs at hand say about each. No torch."""
