"""The 30 claims of the five reports, each with what would decide it."""

from __future__ import annotations

from benchmarks.multitask_bert.claims import design, outcomes, surgery

CLAIMS = (*surgery.CLAIMS, *design.CLAIMS, *outcomes.CLAIMS)
