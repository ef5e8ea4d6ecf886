"""The reports' claims, and what the runs at hand say about each. No torch."""

from __future__ import annotations

from benchmarks.multitask_bert.claims.findings import Finding, findings

__all__ = ["Finding", "findings"]
