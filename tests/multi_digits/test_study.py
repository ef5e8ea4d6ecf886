"""Studies: pairs of one seed against each other, the record against what ran, the page against
numbers made up."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.multi_digits import __main__ as cli
from benchmarks.multi_digits import report, trial
from benchmarks.multi_digits.study import LEARNING_RATES, Record, Study, best_rates
from benchmarks.multi_digits.trial import Outcome, Trial

SMALL = Trial("loss-sum", seed=4, num_images=256, num_epochs=1)


def _outcome(method, seed, lr, accuracy):
    return Outcome(Trial(method, seed, lr), (accuracy, accuracy), None, 1.0)


def test_two_methods_of_a_seed_start_equal_and_see_equal_batches(monkeypatch):
    seen = {}

    class Spy(trial.Network):
        def __init__(self, num_channels):
            super().__init__(num_channels)
            self.log = seen.setdefault(
                len(seen), [torch.cat([p.flatten() for p in self.parameters()])]
            )

        def forward(self, images):
            self.log.append(images)
            return super().forward(images)

    monkeypatch.setattr(trial, "Network", Spy)
    for method in ("loss-sum", "pcgrad"):
        trial.run(replace(SMALL, method=method))
    assert len(seen[0]) == len(seen[1]) == 1 + 2 + 1  # weights, two batches, the test
    for mine, theirs in zip(seen[0], seen[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_trial_run_twice_ends_the_same():
    first, second = (trial.run(replace(SMALL, method="pcgrad")) for _ in range(2))
    assert first.accuracy == second.accuracy
    assert 0 <= first.conflicts <= 1


def test_the_learning_rate_is_chosen_on_the_tuning_seeds_alone():
    study = Study(("loss-sum",), num_seeds=2, num_tuning_seeds=2)
    tuned = study.tuning()
    assert len(tuned) == 2 * len(LEARNING_RATES)
    outcomes = [_outcome(t.method, t.seed, t.lr, 0.5 + (t.lr == LEARNING_RATES[1])) for t in tuned]
    misleading = [_outcome("loss-sum", 0, LEARNING_RATES[0], 2.0)]
    assert set(best_rates(outcomes + misleading).values()) == {LEARNING_RATES[1]}
    assert study.reported(outcomes + misleading) == [
        Trial("loss-sum", seed, LEARNING_RATES[1]) for seed in (0, 1)
    ]


def test_paired_differences_forget_what_the_seeds_have_in_common():
    outcomes = []
    for method, gain in (("loss-sum", 0.0), ("pcgrad", 0.01)):
        outcomes.append(_outcome(method, 10_000, 1e-2, 0.5))
        outcomes += [_outcome(method, s, 1e-2, 0.1 * s + gain + 1e-4 * s * gain) for s in range(6)]
    (section,) = report.sections(outcomes)
    row = next(row for row in section.rows if row.method == "pcgrad")
    assert row.paired.is_decided
    assert not row.unpaired.is_decided
    assert row.paired.value == pytest.approx(row.unpaired.value)
    assert any("PCGrad: +0.010" in line for line in report.summary([section]))


def test_one_seed_decides_nothing():
    outcomes = [
        _outcome(method, seed, 1e-2, 0.5 + 0.1 * (method == "pcgrad"))
        for method in ("loss-sum", "pcgrad")
        for seed in (0, 10_000)
    ]
    (section,) = report.sections(outcomes)
    row = next(row for row in section.rows if row.method == "pcgrad")
    assert math.isnan(row.paired.reach)
    assert not row.paired.is_decided


def test_a_record_is_resumed_also_after_a_write_was_cut_off(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    record = Record(path)
    record.add(_outcome("pcgrad", 1, 1e-2, 0.5))
    with path.open("a") as file:
        file.write('{"trial": {"meth')
    again = Record(path)
    assert list(again.outcomes.values()) == list(record.outcomes.values())
    again.add(_outcome("pcgrad", 2, 1e-2, 0.5))
    assert len(Record(path).outcomes) == 2


def test_a_broken_record_is_named(tmp_path, capsys):
    (tmp_path / "outcomes.jsonl").write_text(json.dumps({"trial": 3}) + "\n")
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    assert "line 1 must be an outcome" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "nonsense"], "--methods: must be of loss-sum"),
        (["--seeds", "0"], "--seeds: must be at least 1"),
        (["--noise", "1.5"], "--noise: must be from 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(given, said, tmp_path, capsys):
    assert cli.main(["run", "--out", str(tmp_path), *given]) == 2
    assert said in capsys.readouterr().err


def test_the_command_runs_reports_and_goes_on(tmp_path, capsys):
    arguments = ["run", "--methods", "pcgrad", "--seeds", "2", "--tuning-seeds", "1"]
    arguments += ["--images", "128", "--processes", "1", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "PCGrad:" in printed
    lines = (tmp_path / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (len(LEARNING_RATES) + 2)
    for name in ("report.md", "report.html", "trade-off.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert cli.main(arguments) == 0
    assert (tmp_path / "outcomes.jsonl").read_text().splitlines() == lines
