"""A verdict on each claim, from the runs of a section."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.multitask_bert.claims import on_design, on_outcomes, on_surgery
from benchmarks.multitask_bert.claims.claim import Claim
from benchmarks.multitask_bert.claims.verdicts import Verdict
from benchmarks.multitask_bert.records.rows import Section

# The 30 claims of the five reports, each with what would decide it.
CLAIMS = (*on_surgery.CLAIMS, *on_design.CLAIMS, *on_outcomes.CLAIMS)
SYNTHETIC = "built-in corpus: "


@dataclass(frozen=True)
class Finding:
    """The runs' answer to one claim.

    Args:
        id: ``C1`` to ``C30``.
        claim: in one sentence.
        source: the reports that make it, as keys of ``published.toml``.
        verdict: ``inconclusive`` is tested, but within noise or on too little.
        evidence: the numbers, each with its standard error, or what is missing; then a caution.
    """

    id: str
    claim: str
    source: str
    verdict: Verdict
    evidence: str


def findings(section: Section) -> list[Finding]:
    """A finding for each of the 30 claims, in their order.

    Example:
        >>> from benchmarks.multitask_bert.records.rows import Section
        >>> found = findings(Section("a folder", "no runs", ()))
        >>> len(found), found[0].id, found[0].verdict
        (30, 'C1', 'not tested')
    """
    return [_finding(claim, section) for claim in CLAIMS]


def _finding(claim: Claim, section: Section) -> Finding:
    outcome = claim.check.outcome(section)
    evidence = f"{SYNTHETIC if section.is_synthetic else ''}{outcome.text}."
    if claim.caution and outcome.verdict != "not tested":
        evidence += f" {claim.caution}"
    return Finding(claim.id, claim.text, ", ".join(claim.sources), outcome.verdict, evidence)
