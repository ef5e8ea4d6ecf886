"""The verdicts on the reports' claims against numbers worked out by hand from made-up runs."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.multitask_bert.claims.examples import contributions, difference_error
from benchmarks.multitask_bert.claims.findings import CLAIMS, Finding, findings
from benchmarks.multitask_bert.claims.verdicts import (
    Each,
    Every,
    Measured,
    UntestedError,
    Within,
)
from benchmarks.multitask_bert.metrics import (
    accuracy_standard_error,
    pearson_standard_error,
)
from benchmarks.multitask_bert.recipes.catalog import all_recipes
from benchmarks.multitask_bert.records.rows import Section, find_runs, group_by_data
from benchmarks.multitask_bert.significance import Estimate
from tests.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PUBLISHED = ROOT / "benchmarks/multitask_bert/report/published.toml"
RECIPES = all_recipes()
SIZES = {"sst": 1101, "quora": 20212, "sts": 863, "cfimdb": 245}
METRICS = {"sst": 0.50, "quora": 0.80, "sts": 0.80}
LOSS_SUM, PCGRAD = "smet-walker/general-linear-loss-sum", "smet-walker/v2-dropout-0.3"
COSINE, BOTH = "smet-walker/v1-dropout-0.3", "smet-walker/v3-cosine-pcgrad"
CJ, CJ_GS = "chada-jolly/baseline", "chada-jolly/gs"
VERDICTS = {"supported", "contradicted", "inconclusive", "not tested"}
Change = Callable[[dict[str, Any]], None]


def write_run(
    root: Path,
    id: str,
    seed: int = 0,
    *,
    metrics: Mapping[str, float] = METRICS,
    steps: int = 1000,
    train: Sequence[Mapping[str, Any]] = (),
    devs: Sequence[Mapping[str, float]] = (),
    predictions: Mapping[str, Sequence[tuple[str, float, float]]] | None = None,
    change: Change | None = None,
    finished: bool = True,
    seconds: float = 100.0,
    environment: Mapping[str, Any] | None = None,
    **config: Any,
) -> None:
    """Make up a run of a recipe as it is, or as a change of its fields makes it."""
    folder = root / f"{len(list(root.iterdir()))}"
    (folder / "predictions").mkdir(parents=True)
    recipe = copy.deepcopy(RECIPES[id].to_dict())
    if change:
        change(recipe)
    content = {
        "recipe": recipe,
        "seed": seed,
        "data": "some/folder",
        "encoder": "an-encoder",
        "max_steps": None,
        "scale": 1.0,
        "precision": "fp32",
        "device": "cpu",
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    (folder / "environment.json").write_text(json.dumps(environment or {"cpu": "a processor"}))
    stage = len(recipe["stages"]) - 1
    events: list[dict[str, Any]] = [
        {"event": "data", "task": task, "split": "dev", "examples": SIZES[task]} for task in metrics
    ]
    events += [
        {"event": "train", "stage": stage, "step": 10 * i, **each}
        for i, each in enumerate(train, start=1)
    ]
    events += [
        {"event": "dev", "stage": stage, "step": i * steps // len(devs), "metrics": each}
        for i, each in enumerate(devs, start=1)
    ]
    events.sort(key=lambda event: event.get("step", 0))
    if finished:
        end = {"event": "end", "step": steps, "metrics": metrics, "train_seconds": seconds}
        events.append(end)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    for task, rows in (predictions or {}).items():
        write_predictions(folder / f"predictions/{task}-dev.csv", rows)


def unmonitored(recipe: dict[str, Any]) -> None:
    for stage in recipe["stages"]:
        stage["monitored"] = False


def write_predictions(path: Path, rows: Sequence[tuple[str, float, float]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "prediction", "label"), *rows])


def write_seeds(root: Path, id: str, task: str, values: Sequence[float], **rest: Any) -> None:
    for seed, value in enumerate(values):
        write_run(root, id, seed, metrics={**METRICS, task: value}, **rest)


def section_of(root: Path) -> Section:
    (section,) = group_by_data(find_runs([root])[0])
    return section


def finding(root: Path, id: str) -> Finding:
    return next(each for each in findings(section_of(root)) if each.id == id)


def estimates(text: str) -> list[tuple[float, float]]:
    """Give each "value ± error" of an evidence."""
    return [(float(a), float(b)) for a, b in re.findall(r"([+-]?\d+\.\d+) ± (\d+\.\d+)", text)]


def test_there_are_thirty_claims_in_order() -> None:
    found = findings(Section("some/folder", "no runs", ()))
    assert [each.id for each in found] == [f"C{number}" for number in range(1, 31)]
    assert {each.verdict for each in found} == {"not tested"}
    assert all("needs complete runs of `" in each.evidence for each in found)
    assert len({each.claim for each in found}) == 30
    assert all(each.claim.endswith(".") and len(each.claim) < 100 for each in found)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claim_names_recipes_and_reports_that_exist(claim: Any) -> None:
    published = tomllib.loads(PUBLISHED.read_text())
    assert claim.check.recipes
    assert set(claim.check.recipes) <= RECIPES.keys()
    assert claim.sources
    assert set(claim.sources) <= published["reports"].keys()


@pytest.mark.parametrize("id", ["C2", "C4", "C25"])
def test_what_surgery_does_is_judged_by_recipes_that_differ_in_the_method_alone(id: str) -> None:
    (claim,) = (each for each in CLAIMS if each.id == id)
    assert isinstance(claim.check, Each | Every)
    for part in claim.check.parts:
        first, second = (RECIPES[each].in_every_stage(method="none") for each in part.recipes)
        for name in ("id", "description", "assumed"):
            object.__setattr__(first, name, getattr(second, name))
        assert first == second


@pytest.mark.parametrize(
    ("report", "supported", "inconclusive"),
    [
        ("smet-walker", {"C1"}, {"C14", "C16", "C17", "C18"}),
        ("chada-jolly", {"C3", "C19"}, {"C2", "C15"}),
        ("benton", {"C11"}, {"C10", "C12"}),
        ("xu", set(), {"C24"}),
        ("jiang-yu", {"C21", "C23", "C30"}, {"C22"}),
    ],
)
def test_the_published_numbers_as_two_seeds_each(
    report: str, supported: set[str], inconclusive: set[str], tmp_path: Path
) -> None:
    """Which way each claim goes; the smaller differences are within the error of dev examples."""
    published = tomllib.loads(PUBLISHED.read_text())
    for id, system in published["systems"].items():
        printed = {task: value for task, value in system["dev"].items() if task in SIZES}
        if system["report"] == report:
            for seed in range(2):
                write_run(tmp_path, id, seed, metrics=printed, seconds=math.nan)
    found = [each for each in findings(section_of(tmp_path)) if each.source == report]
    verdicts = {each.id: each.verdict for each in found if each.verdict != "not tested"}
    assert verdicts == {
        **dict.fromkeys(supported, "supported"),
        **dict.fromkeys(inconclusive, "inconclusive"),
    }


def test_a_difference_is_judged_by_its_error_over_seeds_and_examples(tmp_path: Path) -> None:
    ours, theirs = [0.40, 0.43, 0.46], [0.60, 0.61, 0.65]
    write_seeds(tmp_path, CJ_GS, "sts", ours)
    write_seeds(tmp_path, CJ, "sts", theirs)
    found = finding(tmp_path, "C3")
    seeds = [statistics.stdev(v) / math.sqrt(3) for v in (ours, theirs)]
    dev = [pearson_standard_error(statistics.mean(v), 863) for v in (ours, theirs)]
    ((value, error),) = estimates(found.evidence)
    assert value == pytest.approx(statistics.mean(ours) - statistics.mean(theirs), abs=5e-4)
    assert error == pytest.approx(math.hypot(*seeds, *dev), abs=5e-4)
    assert found.verdict == "supported"
    assert "0.430 and 0.620; 3 seeds each; 1,000 steps;" in found.evidence
    assert f"`{CJ_GS}` less `{CJ}`" in found.evidence
    assert found.source == "chada-jolly"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.70, 0.71], "contradicted"),
        ([0.60, 0.61], "inconclusive"),
        ([0.20, 0.90], "inconclusive"),
        ([0.40], "inconclusive"),
    ],
    ids=["the other way", "too close", "seeds too far apart", "one seed"],
)
def test_a_difference_that_is_not_as_claimed(
    ours: list[float], verdict: str, tmp_path: Path
) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", ours)
    write_seeds(tmp_path, CJ, "sts", [0.60, 0.61])
    found = finding(tmp_path, "C3")
    assert found.verdict == verdict
    assert ("a single seed" in found.evidence) == (len(ours) == 1)


def test_the_error_of_an_overall_score_is_that_of_its_parts(tmp_path: Path) -> None:
    for id, shift in ((PCGRAD, 0.1), (LOSS_SUM, 0.0)):
        for seed in range(2):
            write_run(tmp_path, id, seed, metrics={k: v + shift for k, v in METRICS.items()})
    found = finding(tmp_path, "C4")
    errors = [
        measure(METRICS[task] + shift, SIZES[task]) / 3
        for task, measure in (
            ("sst", accuracy_standard_error),
            ("quora", accuracy_standard_error),
            ("sts", pearson_standard_error),
        )
        for shift in (0.1, 0.0)
    ]
    assert estimates(found.evidence) == [(0.1, pytest.approx(math.hypot(*errors), abs=5e-4))]
    assert found.verdict == "supported"
    assert "not tested: needs complete runs of `jiang-yu/finetune-1`" in found.evidence


def test_errors_on_the_same_examples_are_paired(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 1101).astype(float)
    ours = np.where(random.random(1101) < 0.5, labels, (labels + 1) % 5)
    theirs = ours.copy()
    theirs[:33] = (labels[:33] + 2) % 5  # wrong where the first is right or as wrong
    ids = [f"a{i}" for i in range(1101)]
    for id, values in ((CJ_GS, ours), (CJ, theirs)):
        rows = list(zip(ids, values.tolist(), labels.tolist(), strict=True))
        write_run(tmp_path, id, predictions={"sst": rows})
    rows = {row.recipe_id: row for row in section_of(tmp_path).rows}
    lost = np.zeros(1101)
    lost[:33] = (ours == labels)[:33]
    expected = lost.std(ddof=1) / math.sqrt(1101)
    assert difference_error("sst", rows[CJ_GS], rows[CJ]) == pytest.approx(expected)
    independent = math.hypot(*[accuracy_standard_error(0.5, 1101)] * 2)
    assert expected < independent / 3
    assert difference_error("quora", rows[CJ_GS], rows[CJ]) == pytest.approx(
        math.hypot(*[accuracy_standard_error(0.8, 20212)] * 2)
    )


def test_contributions_have_the_standard_error_of_the_metric() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=20000)
    y = 0.8 * x + 0.6 * random.normal(size=20000)
    error = contributions("sts", x, y).std() / math.sqrt(20000)
    assert error == pytest.approx(pearson_standard_error(np.corrcoef(x, y)[0, 1], 20000), rel=0.05)
    right = (random.random(20000) < 0.3).astype(float)
    error = contributions("quora", right, np.ones(20000)).std() / math.sqrt(20000)
    assert error == pytest.approx(accuracy_standard_error(right.mean(), 20000))


def test_a_constant_prediction_decides_nothing(tmp_path: Path) -> None:
    rows = [(f"a{i}", 2.5, i % 5) for i in range(863)]
    write_seeds(tmp_path, CJ_GS, "sts", [0.0, 0.0], predictions={"sts": rows})
    write_seeds(tmp_path, CJ, "sts", [0.60, 0.61])
    found = finding(tmp_path, "C3")
    assert found.verdict == "inconclusive"
    assert "degenerate STS predictions" in found.evidence


def set_in_stages(**fields: Any) -> Change:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage.update(copy.deepcopy(fields))

    return change


def set_field(**fields: Any) -> Change:
    return lambda recipe: recipe.update(fields)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ({"max_steps": 400}, "max_steps 400 and None"),
        ({"encoder": "another"}, "encoder another and an-encoder"),
        ({"scale": 0.5}, "scale 0.5 and 1.0"),
        ({"precision": "bf16"}, "precision bf16 and fp32"),
        ({"change": set_field(pooling="mean")}, 'pooling "mean" and "pooler"'),
        ({"change": set_in_stages(lr=1e-4)}, "stages.0.lr 0.0001 and 1e-05"),
        ({"change": set_in_stages(method="loss-sum")}, 'stages.0.method "loss-sum"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_under_different_settings_are_not_compared(
    rest: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", [0.4, 0.4], **rest)
    write_seeds(tmp_path, CJ, "sts", [0.6, 0.6])
    found = finding(tmp_path, "C3")
    assert found.verdict == "not tested"
    assert "different settings" in found.evidence
    assert told in found.evidence


def test_a_setting_that_both_rows_have_is_no_difference(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe.update(pooling="mean", head_dropout=0.2)
        set_in_stages(lr=1e-4)(recipe)

    for id, value in ((CJ_GS, 0.4), (CJ, 0.6)):
        write_seeds(tmp_path, id, "sts", [value] * 2, change=change, scale=0.1)
    found = finding(tmp_path, "C3")
    assert found.verdict == "supported"
    assert "1,000 steps, fewer than the recipe has" in found.evidence


def test_a_setting_that_takes_the_difference_away_is_refused(tmp_path: Path) -> None:
    for id in (f"smet-walker/v1-dropout-{rate}" for rate in (0.3, 0.5, 0.8)):
        write_seeds(tmp_path, id, "sst", [0.5] * 3, change=set_field(head_dropout=0.1))
    found = finding(tmp_path, "C14")
    assert found.verdict == "not tested"
    assert "head_dropout 0.1 and 0.1 (recipes: 0.5 and 0.3)" in found.evidence


def test_one_factor_on_both_rates_keeps_their_difference(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage["lr"] *= 10

    for option, value in (("pretrain", 0.40), ("finetune", 0.55)):
        for seed in range(2):
            id = f"jiang-yu/minbert-sst-{option}"
            write_run(tmp_path, id, seed, metrics={"sst": value}, change=change)
    assert finding(tmp_path, "C30").verdict == "supported"


@pytest.mark.parametrize(
    ("word", "replaced", "verdict"),
    [
        ("joint-sep", ("quora", "sts"), "supported"),
        ("siamese-cos", ("quora", "sts"), "not tested"),
        ("joint-sep", ("sts",), "not tested"),
    ],
    ids=["everywhere", "by the other's", "in one place alone"],
)
def test_an_encoding_that_replaces_another_in_both_rows(
    word: str, replaced: Sequence[str], verdict: str, tmp_path: Path
) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for task in replaced:
            if recipe["pairs"][task] == "joint-raw-ids":
                recipe["pairs"][task] = word

    write_seeds(tmp_path, LOSS_SUM, "sts", [0.95] * 2, change=change)
    write_seeds(tmp_path, COSINE, "sts", [0.70] * 2, change=change)
    assert finding(tmp_path, "C11").verdict == verdict


def test_a_common_batch_size_for_recipes_of_different_tasks(tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        for stage in recipe["stages"]:
            stage["batch_size"] = dict.fromkeys(stage["batch_size"], 16)

    for seed in range(2):
        write_run(tmp_path, "jiang-yu/baseline", seed, change=change)
        for task in ("sst", "sts"):
            id, value = f"jiang-yu/single-task-{task}", METRICS[task] + 0.1
            write_run(tmp_path, id, seed, metrics={task: value}, change=change)
    assert finding(tmp_path, "C21").verdict == "supported"


def test_the_setting_with_most_seeds_is_taken_and_told(tmp_path: Path) -> None:
    for scale, ours, theirs in ((0.5, [0.9] * 2, [0.6] * 4), (0.1, [0.4] * 3, [0.6] * 3)):
        write_seeds(tmp_path, CJ_GS, "sts", ours, scale=scale)
        write_seeds(tmp_path, CJ, "sts", theirs, scale=scale)
    found = finding(tmp_path, "C3")
    assert found.verdict == "supported"
    assert "3 seeds each" in found.evidence
    assert "the most seeds of 2 settings" in found.evidence
    assert re.search(r"gs #(\d)` less `chada-jolly/baseline #(\d)` -0.200", found.evidence)


def test_an_unfinished_run_is_none(tmp_path: Path) -> None:
    write_seeds(tmp_path, CJ_GS, "sts", [0.4] * 2, finished=False)
    write_seeds(tmp_path, CJ, "sts", [0.6] * 2)
    found = finding(tmp_path, "C3")
    assert found.verdict == "not tested"
    assert found.evidence == f"needs complete runs of `{CJ_GS}`."


def test_a_limit_of_steps_says_nothing_about_epochs(tmp_path: Path) -> None:
    for id, value in (("smet-walker/v1-epochs-20", 0.9), (COSINE, 0.5)):
        write_seeds(tmp_path, id, "sts", [value] * 2, steps=400, max_steps=400)
    found = finding(tmp_path, "C18")
    assert found.verdict == "not tested"
    assert "max_steps ended a run" in found.evidence


@pytest.mark.parametrize(
    ("sts", "verdict"),
    [(0.805, "supported"), (0.92, "contradicted"), (0.84, "inconclusive")],
)
def test_hardly_matters_means_an_interval_within_the_margin(
    sts: float, verdict: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    labels = random.uniform(0, 5, 863)
    noise = random.normal(size=863)
    ids = [f"a{i}" for i in range(863)]

    def rows(scale: float) -> list[tuple[str, float, float]]:
        values = labels + scale * noise
        return list(zip(ids, values.tolist(), labels.tolist(), strict=True))

    sst = [(f"b{i}", i % 5, (i % 2) * (i % 5)) for i in range(1101)]
    quora = [(f"c{i}", i % 2, i % 3 % 2) for i in range(20212)]
    for number, value in ((0, 0.80), (1, sts), (2, 0.80)):
        id = PCGRAD if number == 0 else f"smet-walker/v2-ll{number}-all"
        predictions = {"sst": sst, "quora": quora, "sts": rows(1.0 if value == 0.80 else 0.95)}
        spread = (-0.01, 0.01) if verdict == "inconclusive" else (0.0, 0.0)
        values = [value + each for each in spread]
        write_seeds(tmp_path, id, "sts", values, predictions=predictions)
    found = finding(tmp_path, "C17")
    assert found.verdict == verdict
    assert "claimed between -0.02 and 0.02" in found.evidence


@pytest.mark.parametrize(
    ("sts", "verdict"), [(0.95, "supported"), (0.81, "contradicted"), (0.90, "inconclusive")]
)
def test_by_far_means_more_than_the_margin(sts: float, verdict: str, tmp_path: Path) -> None:
    write_seeds(tmp_path, "jiang-yu/finetune-3", "sts", [sts] * 2)
    write_seeds(tmp_path, "jiang-yu/finetune-1", "sts", [0.80] * 2)
    assert finding(tmp_path, "C23").verdict == verdict


def test_time_needs_a_loss_sum_that_does_not_watch(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, seconds=150.0)
        write_run(tmp_path, CJ, seed, seconds=100.0)
    found = finding(tmp_path, "C5")
    assert found.verdict == "not tested"
    assert "--set monitored=false" in found.evidence
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, seconds=110.0, change=unmonitored)
        write_run(tmp_path, CJ, seed, seconds=100.0, change=unmonitored)
    found = finding(tmp_path, "C5")
    assert found.verdict == "contradicted"
    assert "1.10" in found.evidence


@pytest.mark.parametrize(
    ("seconds", "cpu", "verdict"),
    [
        ((150.0, 152.0), "a processor", "supported"),
        ((300.0, 304.0), "a processor", "contradicted"),
        ((150.0, 152.0), "another", "not tested"),
    ],
)
def test_time_on_one_machine(
    seconds: tuple[float, float], cpu: str, verdict: str, tmp_path: Path
) -> None:
    for seed in range(2):
        there = {"cpu": cpu}
        write_run(
            tmp_path, CJ_GS, seed, seconds=seconds[seed], environment=there, change=unmonitored
        )
        write_run(tmp_path, CJ, seed, seconds=100.0, change=unmonitored)
    found = finding(tmp_path, "C5")
    assert found.verdict == verdict
    assert ("different machines" in found.evidence) == (verdict == "not tested")


@pytest.mark.parametrize(
    ("size", "verdict"), [(0.02, "supported"), (0.3, "contradicted"), (0.1, "inconclusive")]
)
def test_orthogonality_is_judged_by_the_pair_with_the_largest_cosine(
    size: float, verdict: str, tmp_path: Path
) -> None:
    train = [
        {
            "cosines": {"sst~quora": 0.0, "sts~sst": 0.01, "quora~sts": sign * size + shift},
            "layer_cosines": {"embeddings": {"sst~quora": -0.7}, "pooler": {"sst~quora": 0.1}},
        }
        for sign, shift in ((1, 0.01), (-1, 0.01)) * 10
    ]
    for seed in range(2):
        write_run(tmp_path, CJ, seed, train=train)
    found = finding(tmp_path, "C6")
    assert found.verdict == verdict
    assert estimates(found.evidence)[0][0] == pytest.approx(size)
    assert "|cosine| of Quora and STS" in found.evidence
    assert "largest of its layers 0.700, embeddings, SST and Quora" in found.evidence


@pytest.mark.parametrize(("kept", "verdict"), [(0.2, "supported"), (0.98, "contradicted")])
def test_what_the_projection_leaves_of_a_gradient(
    kept: float, verdict: str, tmp_path: Path
) -> None:
    train = [
        {"norms": {"sst": 1.0, "sts": 4.0}, "norms_after": {"sst": 1.0, "sts": 4.0 * kept}}
    ] * 3
    for seed in range(2):
        write_run(tmp_path, CJ_GS, seed, train=train)
    found = finding(tmp_path, "C7")
    assert found.verdict == verdict
    assert f"at least {kept:.3f} at every logged step" in found.evidence


def test_seeds_that_disagree_about_a_logged_number(tmp_path: Path) -> None:
    for seed, kept in enumerate((0.1, 0.7)):
        train = [{"norms": {"sts": 4.0}, "norms_after": {"sts": 4.0 * kept}}] * 3
        write_run(tmp_path, CJ_GS, seed, train=train)
    found = finding(tmp_path, "C7")
    assert found.verdict == "inconclusive"
    assert estimates(found.evidence) == [(0.4, 0.3)]


def test_older_runs_have_no_norms(tmp_path: Path) -> None:
    write_run(tmp_path, CJ_GS, train=[{"cosines": {"sst~sts": 0.1}, "norm_after": 2.0}])
    found = finding(tmp_path, "C7")
    assert found.verdict == "not tested"
    assert "no norms after the projection on record" in found.evidence


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.3, "supported"), (0.7, "contradicted"), (0.5, "inconclusive")]
)
def test_conflicts_of_two_heads(rate: float, verdict: str, tmp_path: Path) -> None:
    def train(value: float) -> list[dict[str, Any]]:
        rates = {"sst~quora": 0.9, "sst~sts": value, "quora~sts": value}
        return [{"conflict_rate": dict.fromkeys(rates, 0.0)}, {"conflict_rate": rates}]

    for seed in range(2):
        write_run(tmp_path, "chada-jolly/cs", seed, train=train(rate))
        write_run(tmp_path, CJ, seed, train=train(0.5))
    found = finding(tmp_path, "C8")
    assert found.verdict == verdict
    ((value, error),) = estimates(found.evidence)
    assert value == pytest.approx(rate - 0.5)
    one = [r * (1 - r) / 1000 / 2 / 2 for r in (rate, 0.5)]  # two pairs of tasks, two seeds
    assert error == pytest.approx(math.sqrt(sum(one)), abs=6e-4)


@pytest.mark.parametrize(
    ("norm", "rate", "verdict"),
    [(3.0, 0.7, "supported"), (0.5, 0.7, "contradicted"), (3.0, 0.3, "contradicted")],
)
def test_a_task_that_overrules_has_the_longest_gradient_and_most_conflicts(
    norm: float, rate: float, verdict: str, tmp_path: Path
) -> None:
    rates = {"sst~quora": rate, "sst~sts": 0.5, "quora~sts": rate}
    train = [{"norms": {"sst": 1.0, "quora": norm, "sts": 2.0}, "conflict_rate": rates}] * 5
    for seed in range(2):
        write_run(tmp_path, "jiang-yu/baseline", seed, train=train)
    found = finding(tmp_path, "C9")
    assert found.verdict == verdict
    assert f"mean norms SST 1.00, Quora {norm:.2f}, STS 2.00" in found.evidence


def curve(*values: float) -> list[dict[str, float]]:
    return [{"sst": value, "quora": value, "sts": value} for value in values]


@pytest.mark.parametrize(
    ("losses", "dev", "verdict"),
    [
        ((4.0, 3.0, 2.0, 1.0), (0.5, 0.6, 0.7, 0.7), "supported"),
        ((4.0, 3.0, 2.0, 1.0), (0.5, 0.6, 0.7, 0.8), "contradicted"),
        ((4.0, 3.0, 2.0, 2.0), (0.5, 0.6, 0.7, 0.7), "contradicted"),
        ((4.0, 3.0, 2.0, 1.0), (0.7, 0.7, 0.7), "not tested"),
    ],
    ids=["overfits", "still rises", "loss stalls", "too few evaluations"],
)
def test_a_loss_that_falls_while_the_dev_metrics_have_stopped(
    losses: tuple[float, ...], dev: tuple[float, ...], verdict: str, tmp_path: Path
) -> None:
    train = [{"losses": {"sst": loss, "sts": 2 * loss}} for loss in losses for _ in range(25)]
    for seed in range(2):
        write_run(tmp_path, "xu/dense-tuned", seed, train=train, devs=curve(*dev))
    assert finding(tmp_path, "C27").verdict == verdict


@pytest.mark.parametrize(
    ("sts", "others", "verdict"),
    [
        ((0.6, 0.8, 0.7, 0.6), (0.4, 0.5, 0.6, 0.7), "supported"),
        ((0.6, 0.7, 0.8, 0.9), (0.4, 0.5, 0.6, 0.7), "contradicted"),
        ((0.6, 0.8, 0.7, 0.6), (0.4, 0.7, 0.6, 0.5), "contradicted"),
    ],
)
def test_a_task_that_is_left_behind(
    sts: tuple[float, ...], others: tuple[float, ...], verdict: str, tmp_path: Path
) -> None:
    devs = [{"sst": b, "quora": b, "sts": a} for a, b in zip(sts, others, strict=True)]
    for seed in range(2):
        write_run(tmp_path, CJ, seed, devs=devs)
    assert finding(tmp_path, "C28").verdict == verdict


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


def test_the_built_in_corpus_is_named_first(tmp_path: Path) -> None:
    for id, value in ((CJ_GS, 0.4), (CJ, 0.6)):
        write_seeds(tmp_path, id, "sts", [value] * 2, data="synthetic")
    found = {each.id: each for each in findings(section_of(tmp_path))}
    assert found["C3"].verdict == "supported"
    assert all(each.evidence.startswith("built-in corpus: ") for each in found.values())


def measured(value: float | None, num_seeds: int = 3) -> Within:
    class Fixed:
        recipes = ("a",)

        def __call__(self, section: Section) -> Measured:
            if value is None:
                raise UntestedError("no such run")
            return Measured("gain", Estimate(value, 0.1), num_seeds)

    return Within(Fixed(), low=0.0)


GAIN, LOSS, NOISE, ABSENT, ALONE = (
    measured(1.0),
    measured(-1.0),
    measured(0.1),
    measured(None),
    measured(1.0, num_seeds=1),
)


@pytest.mark.parametrize(
    ("parts", "every", "each"),
    [
        ((GAIN, GAIN), "supported", "supported"),
        ((GAIN, NOISE), "inconclusive", "inconclusive"),
        ((GAIN, LOSS), "contradicted", "inconclusive"),
        ((LOSS, LOSS), "contradicted", "contradicted"),
        ((GAIN, ABSENT), "inconclusive", "supported"),
        ((LOSS, ABSENT), "contradicted", "contradicted"),
        ((ABSENT, ABSENT), "not tested", "not tested"),
        ((GAIN, ALONE), "inconclusive", "supported"),
        ((ALONE, ABSENT), "inconclusive", "inconclusive"),
    ],
)
def test_several_numbers_together(parts: tuple[Within, ...], every: str, each: str) -> None:
    section = Section("some/folder", "", ())
    assert Every(parts).outcome(section).verdict == every
    assert Each(parts).outcome(section).verdict == each
    assert {every, each} <= VERDICTS


def test_torch_is_not_imported() -> None:
    program = (
        "import sys, benchmarks.multitask_bert.claims.findings; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
