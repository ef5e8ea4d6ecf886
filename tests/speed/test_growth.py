"""The formula of what PCGrad adds to a step: fits against constants that made the times; the
commands against the file that one leaves to the other."""

import pytest

from benchmarks.speed import growth
from benchmarks.speed.__main__ import main
from benchmarks.speed.growth import Formula, Line

SIZES = [(t, p, n) for t in (2, 9, 50) for p in (100, 10_000, 1_000_000) for n in (4, 30)]


def lines_of(*constants):
    return [
        Line(
            t,
            p,
            n,
            constants[0] + constants[1] * t * n + (constants[2] + constants[3] * t) * t * p,
            1.0,
        )
        for t, p, n in SIZES
    ]


def test_the_constants_that_made_the_times_are_found():
    made = (1e-3, 2e-6, 3e-10, 4e-11)
    formula = Formula.fitted(lines_of(*made))
    assert formula.constants == pytest.approx(made, rel=1e-6)
    assert formula.errors.high < 1e-9
    for line in lines_of(*made):
        assert formula.seconds(*line.size) == pytest.approx(line.extra)


def test_no_constant_is_negative_and_noise_below_zero_is_left_out():
    lines = lines_of(0.0, 2e-6, 3e-10, 0.0)
    noisy = [
        Line(*line.size, line.extra * (1 + 0.1 * (-1) ** i), 1.0) for i, line in enumerate(lines)
    ]
    formula = Formula.fitted([*noisy, Line(2, 100, 4, -1.0, 1.0)])
    assert min(formula.constants) >= 0
    assert formula.errors.median < 0.2


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes: must be at least 4"):
        Formula.fitted([Line(2, 100, 4, -1.0, 1.0)] * 9)


def test_one_command_writes_what_the_other_reads(tmp_path, capsys, monkeypatch):
    made = iter(lines_of(1e-3, 2e-6, 3e-10, 4e-11) * 2)
    monkeypatch.setattr(growth, "_measure_one", lambda *size: next(made))
    assert main(["steps", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "PCGrad adds" in capsys.readouterr().out
    assert len(growth.read_csv(tmp_path / "steps.csv")) == 8
    asked = ["predict", "--tasks", "3", "--parameters", "22.7e6", "--step", "1"]
    assert main([*asked, "--measured", str(tmp_path / "steps.csv")]) == 0
    printed = capsys.readouterr().out
    assert "rows of 272.4 MB" in printed
    assert "% of a step of 1 s" in printed
    (tmp_path / "steps.csv").write_text("what,else\n1,2\n")
    assert main([*asked, "--measured", str(tmp_path / "steps.csv")]) == 2
    assert "must be a file that `steps` wrote" in capsys.readouterr().err


def test_one_size_is_measured():
    line = growth._measure_one(2, 1000, 4, 1, 0)
    assert (line.num_tasks, line.num_tensors) == (2, 8)
    assert line.plain > 0
