"""The whole analysis against errors put into the predictions of a made-up run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.multitask_bert.data.corpus import load_corpus
from benchmarks.multitask_bert.data.files import Corpus, Example
from benchmarks.multitask_bert.errors import analysis
from benchmarks.multitask_bert.errors.analysis import analyze, analyze_all
from benchmarks.multitask_bert.errors.features import has_negation, jaccard, words
from benchmarks.multitask_bert.metrics import accuracy, pearson

TASKS = ("sst", "quora", "sts")
PLOTS = ["errors-quora.svg", "errors-sst.svg", "errors-sts.svg"]
Predict = Callable[[Example, np.random.Generator], float]


def negated_once(example: Example) -> bool:
    first, second = (has_negation(words(text)) for text in example.texts)
    return first != second


def overlap(example: Example) -> float:
    first, second = map(words, example.texts)
    return jaccard(first, second)


def predict_class(example: Example, random: np.random.Generator) -> float:
    """One class off in a quarter of the cases, and no sentence is ever found to be neutral."""
    assert example.label is not None
    found = example.label + random.choice([-1, 0, 0, 0])
    return float(np.clip(found if found != 2 else 3, 0, 4))


def predict_paraphrase(example: Example, random: np.random.Generator) -> float:
    """Paraphrases are those of high overlap, whatever is negated."""
    return float(overlap(example) >= 0.5)


def predict_score(example: Example, random: np.random.Generator) -> float:
    """A score too high by 1 where one text is negated."""
    assert example.label is not None
    return example.label + negated_once(example) + random.normal(scale=0.3)


PREDICT: Mapping[str, Predict] = {
    "sst": predict_class,
    "quora": predict_paraphrase,
    "sts": predict_score,
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("synthetic", TASKS)


def write_run(
    folder: Path, corpus: Corpus, predict: Mapping[str, Predict] = PREDICT, **config: Any
) -> Path:
    (folder / "predictions").mkdir(parents=True)
    metrics = {}
    for task, function in predict.items():
        random = np.random.default_rng(0)
        examples = corpus.splits[task, "dev"].examples
        labels = [float(e.label or 0) for e in examples]
        predictions = [function(e, random) for e in examples]
        metrics[task] = (pearson if task == "sts" else accuracy)(predictions, labels)
        with (folder / f"predictions/{task}-dev.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "prediction", "label"])
            for e, p, label in zip(examples, predictions, labels, strict=True):
                writer.writerow([e.id, f"{p:g}", f"{label:g}"])
    content = {
        "recipe": {"id": "somebody/system", "tasks": list(predict)},
        "seed": 5,
        "data": "synthetic",
        "data_notice": corpus.notice,
        "encoder": "tiny",
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    early = {**metrics, "sst": metrics["sst"] + 0.1} if "sst" in metrics else metrics
    events = [
        {"event": "dev", "step": 10, "metrics": early, "best": True},
        {"event": "dev", "step": 20, "metrics": metrics, "best": True},
        {"event": "end", "step": 20, "metrics": metrics, "best_epoch": 2},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> tuple[Path, str]:
    run = write_run(tmp_path_factory.mktemp("analysis") / "run", corpus)
    return run, analyze(run).markdown


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing out where a test is about something else: it takes most of the time."""

    def touch(draw: object, path: Path, title: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(analysis, "save", touch)


def section(text: str, title: str) -> str:
    level = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert level is not None, title
    after = text[level.end() :]
    until = re.search(rf"^#{{1,{len(level.group(1))}}} ", after, re.MULTILINE)
    return after[: until.start()] if until else after


def row(text: str, title: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_and_plots_are_written_beside_the_run(analyzed: tuple[Path, str]) -> None:
    run, text = analyzed
    assert (run / "analysis.md").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in (run / "plots").iterdir()) == PLOTS
    for path in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (run / path).stat().st_size > 10_000
    assert len(re.findall(r"!\[", text)) == 3
    assert text.startswith("**SYNTHETIC DATA, NOT SST, QUORA AND STS.**")


def test_the_page_has_all_that_the_markdown_has(analyzed: tuple[Path, str]) -> None:
    run, text = analyzed
    page = (run / "analysis.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/svg+xml;base64,') == len(PLOTS)
    assert page.count("<table") == len(re.findall(r"^\|-", text, re.MULTILINE))
    assert page.count("<details") == text.count("<details>")
    assert page.count("<script") == 1
    titles = re.findall(r"<h\d[^>]*>(.*?)</h\d>", page)
    assert len(titles) == len(re.findall(r"^#+ ", text, re.MULTILINE))


def test_every_table_has_a_width(analyzed: tuple[Path, str]) -> None:
    _, text = analyzed
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
        assert len({len(line) for line in block.splitlines()}) == 1


def test_the_negation_put_into_the_scores_is_found(
    analyzed: tuple[Path, str], corpus: Corpus
) -> None:
    sts = section(analyzed[1], "STS")
    cells = row(section(sts, "Groups against the rest"), "negation in exactly one text")
    count = sum(map(negated_once, corpus.splits["sts", "dev"].examples))
    assert count > 10
    assert cells[1] == str(count)
    value, error = map(float, cells[6].split(" ± "))
    assert value == pytest.approx(1.0, abs=4 * error)
    assert error < 0.1
    assert cells[7] == "higher"
    block = sts[sts.index("Negation in exactly one text: 5 of") :]
    assert "predicted" in block.splitlines()[2]
    assert " not " in block.split("</details>")[0]


def test_the_overlap_put_into_the_paraphrases_is_found(
    analyzed: tuple[Path, str], corpus: Corpus
) -> None:
    quora = section(analyzed[1], "Quora")
    cells = row(section(quora, "Groups against the rest"), "overlap of 0.5 or more")
    others = [e for e in corpus.splits["quora", "dev"].examples if e.label == 0]
    assert cells[1] == str(sum(overlap(e) >= 0.5 for e in others))
    assert cells[2].startswith("1.000")
    assert cells[3].startswith("0.000")
    assert cells[5] == "higher"
    assert cells[7].startswith("0.000")
    assert cells[10] == "lower"


def test_the_neutral_class_that_is_never_predicted_is_found(
    analyzed: tuple[Path, str], corpus: Corpus
) -> None:
    sst = section(analyzed[1], "SST")
    (cells,) = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in sst.splitlines()
        if re.match(r"\| 2 +\| 0\.\d+ +\| 0\.000", line)
    ]
    labels = [e.label for e in corpus.splits["sst", "dev"].examples]
    assert cells[1] == f"{labels.count(2) / len(labels):.3f}"
    assert cells[4] == "lower"
    assert cells[5].startswith("0.000")
    assert cells[6] == "- of 0"
    assert row(section(sst, "Neutral sentences"), "predicted 2")[1] == "0"


def test_each_metric_stands_beside_its_constant_predictor(
    analyzed: tuple[Path, str], corpus: Corpus
) -> None:
    run, text = analyzed
    recorded = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    labels = [e.label for e in corpus.splits["quora", "dev"].examples]
    overview = text.split("\n## ")[0]
    cells = row(overview, "Quora accuracy")
    assert cells[1] == str(len(labels))
    assert cells[2].startswith(f"{recorded['quora']:.3f} ± ")
    assert cells[3] == f"{max(labels.count(0), labels.count(1)) / len(labels):.3f}"
    assert row(overview, "STS Pearson r")[3:] == ["0.000", "higher"]


def test_comparisons_are_counted(analyzed: tuple[Path, str]) -> None:
    _, text = analyzed
    found = re.search(r"Of (\d+) comparisons below, (\d+) have .* and (\d+) are named", text)
    assert found is not None
    total, judged, named = map(int, found.groups())
    below = text[text.index("\n## SST") :]
    cells = [cell.strip() for line in below.splitlines() for cell in line.strip("|").split("|")]
    assert named == cells.count("higher") + cells.count("lower") > 0
    assert judged == named + cells.count("within noise")
    assert total == judged + cells.count("too few to tell") > judged


def test_what_a_task_gives_up_for_the_checkpoint_is_listed(analyzed: tuple[Path, str]) -> None:
    own = section(analyzed[1], "Each task's own best checkpoint")
    assert row(own, "SST accuracy")[1] == "10"
    assert row(own, "SST accuracy")[-1] == "0.100"
    assert row(own, "STS Pearson r")[-1] == "0.000"
    assert "at step 20, the one kept" in own


@pytest.mark.usefixtures("undrawn")
def test_degenerate_predictions_are_called_so(tmp_path: Path, corpus: Corpus) -> None:
    run = write_run(
        tmp_path / "run",
        corpus,
        {"sst": lambda e, r: 3.0, "quora": lambda e, r: float(e.id.endswith("77")), "sts": nan},
    )
    (run / "plots").mkdir()
    (run / "plots/errors-sst.svg").write_text("of an earlier analysis")
    text = analyze(run).markdown
    assert "**Degenerate**: the SST predictions are all one value" in section(text, "SST")
    assert "**Degenerate**: the STS predictions are all one value or not finite" in text
    assert re.search(
        r"\*\*Nearly constant\*\*: 9\d\.\d% of the Quora predictions are class 0", text
    )
    assert [path.name for path in (run / "plots").iterdir()] == ["errors-quora.svg"]
    assert "Groups against the rest" not in section(text, "STS")


def nan(example: Example, random: np.random.Generator) -> float:
    return float("nan")


@pytest.mark.usefixtures("undrawn")
def test_a_record_that_says_otherwise_is_pointed_out(tmp_path: Path, corpus: Corpus) -> None:
    run = write_run(tmp_path / "run", corpus, {"sts": predict_score})
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[-1] = json.dumps({"event": "end", "step": 20, "metrics": {"sts": 0.5}})
    path.write_text("\n".join([*lines, ""]))
    assert (
        "**The record says otherwise**: STS Pearson r 0.500 in metrics.jsonl"
        in analyze(run).markdown
    )


@pytest.mark.usefixtures("undrawn")
def test_thresholds_and_place_are_arguments(tmp_path: Path, corpus: Corpus) -> None:
    run = write_run(tmp_path / "run", corpus, {"sts": predict_score})
    out = tmp_path / "else" / "where"
    text = analyze(run, out=out, long_pair=90, num_worst=1).markdown
    assert {path.name for path in out.iterdir()} == {"analysis.md", "analysis.html", "plots"}
    assert not (run / "analysis.md").exists()
    examples = corpus.splits["sts", "dev"].examples
    count = sum(sum(map(len, e.texts)) >= 90 for e in examples)
    assert 0 < count < len(examples)
    assert row(section(text, "Groups against the rest"), "90 characters or more")[1] == str(count)
    assert f"90 characters or more: 1 of {count}" in text


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_analyzed_each_in_its_place(tmp_path: Path, corpus: Corpus) -> None:
    predict = {"sts": predict_score}
    write_run(tmp_path / "runs/a", corpus, predict, seed=1)
    write_run(tmp_path / "runs/b", corpus, predict, seed=2)
    text = "\n".join(each.markdown for each in analyze_all([tmp_path / "runs"]))
    assert re.findall(r"^# .*seed (\d)", text, re.MULTILINE) == ["1", "2"]
    assert (tmp_path / "runs/a/analysis.md").is_file()
    analyze_all([tmp_path / "runs/a", tmp_path / "runs/b"], out=tmp_path / "out")
    found = {path.relative_to(tmp_path / "out") for path in tmp_path.rglob("out/**/analysis.md")}
    assert found == {Path(f"somebody/system/seed-{seed}/analysis.md") for seed in (1, 2)}
    analyze_all([tmp_path / "runs/a"], out=tmp_path / "one")
    assert (tmp_path / "one/analysis.md").is_file()


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_analyzed_is_refused_in_one_line(tmp_path: Path, corpus: Corpus) -> None:
    predict = {"sts": predict_score}
    first = write_run(tmp_path / "runs/a", corpus, predict)
    write_run(tmp_path / "runs/b", corpus, predict)
    refusals: list[tuple[Callable[[], str], str]] = [
        (lambda: analyze(tmp_path / "runs"), "must be the folder of one run, found 2 runs in it"),
        (lambda: analyze(tmp_path / "none"), "must be a folder that holds runs, found none"),
        (
            lambda: analyze_all([tmp_path / "runs"], out=tmp_path / "out"),
            "--out: must have one place for each run, found several for .*seed-5",
        ),
        (lambda: analyze(first, data=str(tmp_path / "none")), "must be a folder with the data"),
        (lambda: analyze(unfinished(first)), r"metrics\.jsonl: must have an end event"),
    ]
    for refused, message in refusals:
        with pytest.raises(ValueError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)


def unfinished(run: Path) -> Path:
    (run / "metrics.jsonl").write_text("")
    return run
