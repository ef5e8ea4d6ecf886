"""The claim about long pairs against scores put into the predictions."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.claims.made_up_seeds import estimates, finding, write_run


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.8, "supported"), (-0.8, "contradicted"), (0.0, "inconclusive")]
)
def test_scores_of_long_pairs(shift: float, verdict: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    data = tmp_path / f"data {verdict}"
    data.mkdir()
    lines = ["\tid\tsentence1\tsentence2\tsimilarity"]
    rows = []
    for index in range(863):
        is_long = index % 20 == 0
        label = round(float(random.uniform(0, 5)), 1)
        lines.append(f"{index}\ta{index}\t{'word ' * (40 if is_long else 4)}\tthis one\t{label}")
        lines[-1] = lines[-1].replace("this one", "word " * (40 if is_long else 3))
        error = random.normal(scale=0.3) + shift * is_long
        rows.append((f"a{index}", label + error, label))
    (data / "sts-dev.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "runs").mkdir()
    for seed in range(2):
        id = "benton/ann-concat"
        write_run(tmp_path / "runs", id, seed, data=str(data), predictions={"sts": rows})
    found = finding(tmp_path / "runs", "C29")
    assert found.verdict == verdict
    assert "44 pairs of 300 characters or more" in found.evidence
    (value, _), (excess, _) = estimates(found.evidence)
    long = [prediction - label for i, (_, prediction, label) in enumerate(rows) if i % 20 == 0]
    assert value == pytest.approx(statistics.mean(long), abs=6e-3)
    assert excess == pytest.approx(shift, abs=0.15)


def test_long_pairs_without_their_texts(tmp_path: Path) -> None:
    write_run(tmp_path, "benton/ann-concat", predictions={"sts": [("a", 1.0, 2.0)]})
    found = finding(tmp_path, "C29")
    assert found.verdict == "not tested"
    assert "`analyze`" in found.evidence
