"""The report against numbers worked out by hand from run folders made up here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.benchmark.records.made_up_runs import (
    LOSS_SUM,
    METRICS,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import row_of, tables_of
from tests.paths import ROOT


def test_first_line_says_what_the_data_are(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path / "real", PCGRAD)
    notice = "synthetic corpus: not the real thing"
    write_run(tmp_path / "made up", PCGRAD, data="synthetic", data_notice=notice)
    assert markdown([tmp_path / "real"]).startswith("Data: SST, Quora and STS from some/folder.\n")
    text = markdown([tmp_path / "made up"])
    assert text.splitlines()[0] == (
        "**SYNTHETIC DATA, NOT SST, QUORA AND STS.** Synthetic corpus: not the real thing."
    )
    assert row_of(text, f"`{PCGRAD}`")["SST accuracy"].endswith("│ 0.500 ≠")
    text = markdown([tmp_path])
    assert text.startswith("**2 sources of data: compare no number across them.**\n")


def test_claims_are_told(
    monkeypatch: pytest.MonkeyPatch, markdown: Callable[..., str], tmp_path: Path
) -> None:
    found = [
        SimpleNamespace(id="C1", claim="It | fails.", source="xu", verdict=verdict, evidence="`a`")
        for verdict in ("supported", "contradicted", "inconclusive", "not tested")
    ]
    monkeypatch.setattr("benchmarks.multitask_bert.report.build.findings", lambda section: found)
    folder = write_run(tmp_path, PCGRAD)
    lines = [" ".join(line.split()) for line in markdown([tmp_path]).splitlines()]
    for each in found:
        assert f"| C1 | It \\| fails. | xu | {each.verdict} | `a` |" in lines
    page = (tmp_path / "report.html").read_text()
    assert '<td><span class="bad">contradicted</span></td><td><code>a</code></td>' in (
        page.replace("\n", "")
    )
    assert folder.exists()


def test_all_claims_have_a_verdict(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD)
    text = markdown([tmp_path])
    assert "± is the standard error. A number decides where it lies more than 2 of them" in text
    tested, folded = tables_of(text)[1:3]
    numbers = [row["no."] for row in (*tested, *folded)]
    assert sorted(numbers, key=lambda name: int(name[1:])) == [f"C{n}" for n in range(1, 31)]
    assert {row["verdict"] for row in folded} == {"not tested"}
    assert "not tested" not in {row["verdict"] for row in tested}
    assert f"<summary>{len(folded)} of 30 claims not tested</summary>" in text


def test_runs_of_one_folder_and_other_tasks_go_together(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    write_run(tmp_path, PCGRAD)
    cfimdb = {"metrics": {"cfimdb": 0.9}, "examples": {"cfimdb": 245}}
    write_run(tmp_path, "jiang-yu/minbert-cfimdb-finetune", data_notice="CFIMDB", **cfimdb)
    text = markdown([tmp_path])
    assert text.startswith("Data: SST, Quora and STS from some/folder.\n")
    assert row_of(text, "`jiang-yu/minbert-cfimdb-finetune`", 1)["CFIMDB accuracy"].endswith(
        "│ 0.971 │ -0.071"
    )
    write_run(tmp_path, LOSS_SUM, examples={"sst": 500, "quora": 20212, "sts": 863})
    assert markdown([tmp_path]).startswith("**2 sources of data")


def test_a_run_that_went_on_after_its_end_is_unfinished(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 410, "losses": {"sst": 1.0}}\n')
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["seeds"] == (
        "0 (unfinished, step 410) │ single seed"
    )


def test_a_cut_last_line_is_ignored(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    whole = markdown([tmp_path])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"event": "end", "step": 999, "text": "é'.encode()[:-1])
    assert markdown([tmp_path]) == whole


def test_later_events_of_a_step_replace_earlier_ones(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        event = {"event": "dev", "step": 400, "metrics": {"sst": 0.111}, "best": True}
        file.write(json.dumps(event) + "\n")
    row = row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")
    assert row["SST accuracy"] == "0.111 (1 seed) │ -"
    assert row["STS Pearson r"] == "- │ -"


def test_the_best_checkpoint_counts_not_the_last(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, LOSS_SUM, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        event = {"event": "dev", "step": 500, "metrics": {"sst": 0.111}, "best": False}
        file.write(json.dumps(event) + "\n")
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["SST accuracy"] == "0.430 (1 seed) │ -"


def test_not_a_number_is_shown_as_such(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD, 0, metrics={**METRICS, "sts": math.nan})
    write_run(tmp_path, PCGRAD, 1)
    row = row_of(markdown([tmp_path]), f"`{PCGRAD}`")
    assert row["STS Pearson r"] == "NaN (2 seeds) │ 0.864 │ -"
    assert row["mean"] == "NaN (2 seeds) │ 0.739 │ -"
    assert row["SST accuracy"] == "0.430 ± 0.000 (2 seeds) │ 0.500 │ -0.070"


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_run_without_any_event(
    markdown: Callable[..., str], tmp_path: Path, content: str | None
) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    text = markdown([tmp_path])
    assert row_of(text, f"`{LOSS_SUM}`")["seeds"] == "0 (unfinished, step 0) │ single seed"
    assert "plots/" not in text


def test_seeds_are_in_the_order_of_numbers(markdown: Callable[..., str], tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path, LOSS_SUM, seed)
    assert row_of(markdown([tmp_path]), f"`{LOSS_SUM}`")["seeds"] == "2, 10"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"recipe": {', "Expecting property name"),
        ("[1]", "found list"),
        ("{}", "recipe's id and a seed"),
        ("\xff", "JSON"),
    ],
)
def test_a_broken_config_is_named(
    markdown: Callable[..., str], tmp_path: Path, content: str, found: str
) -> None:
    broken = write_run(tmp_path, LOSS_SUM) / "config.json"
    broken.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=found) as caught:
        markdown([tmp_path])
    assert str(caught.value).startswith(f"{broken}: must ")
    assert "\n" not in str(caught.value)
    write_run(tmp_path, PCGRAD)
    text = markdown([tmp_path])
    assert f"**Not read**, and missing below: {caught.value}" in text
    assert row_of(text, f"`{PCGRAD}`")


def test_the_config_of_a_checkpoint_is_no_run(markdown: Callable[..., str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, LOSS_SUM)
    (folder / "state").mkdir()
    (folder / "state/config.json").write_text("{")
    (tmp_path.parent / "config.json").write_text("{")
    assert "Not read" not in markdown([tmp_path])
    assert "Not read" not in markdown([folder], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "found"), [("empty", "config.json, found none"), ("no", "folder")]
)
def test_no_runs(markdown: Callable[..., str], tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=found) as caught:
        markdown([tmp_path / name])
    assert str(caught.value).startswith(f"{tmp_path / name}: must ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    with pytest.raises(ValueError, match="no directory"):
        markdown([])


def test_neither_torch_nor_a_window_is_needed(tmp_path: Path) -> None:
    write_run(tmp_path, PCGRAD)
    code = (
        "import sys; from pathlib import Path;"
        "from benchmarks.multitask_bert.report.build import report;"
        "assert 'matplotlib' not in sys.modules, 'imported before a plot is drawn';"
        "report([Path(sys.argv[1])]);"
        "print(sorted({'torch', 'matplotlib.pyplot', 'gradsurgery'} & set(sys.modules)))"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
