"""Numbered deviations against settings put into made-up runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.benchmark.records.made_up_runs import (
    COSINE,
    LOSS_SUM,
    PCGRAD,
    write_run,
)
from tests.benchmark.report.read_tables import row_of


def test_deviations_are_numbered_once(markdown: Callable[..., str], tmp_path: Path) -> None:
    write_run(tmp_path, LOSS_SUM, deviations=["pooling set to mean (recipe: cls)", "Other data."])
    write_run(tmp_path, PCGRAD, deviations=["Other data.", "stages.0.lr set to 1 (recipe: 2)"])
    write_run(tmp_path, COSINE, deviations=[], encoder="bert-base-uncased", max_steps=None)
    text = markdown([tmp_path])
    found = [line for line in text.splitlines() if line.partition(".")[0].isdecimal()]
    assert found == [
        "1. encoder: small-encoder in place of BERT base (bert-base-uncased)",
        "2. budget: at most 400 optimizer steps (--max-steps)",
        "3. pooling set to mean (recipe: cls)",
        "4. Other data.",
        "5. stages.0.lr set to 1 (recipe: 2)",
        "6. lr = 1e-05",
        "7. pooling = cls",
    ]
    # What was set to another value is assumed no longer.
    assert row_of(text, f"`{LOSS_SUM}`")["deviations"] == "1-4, 6"
    assert row_of(text, f"`{PCGRAD}`")["deviations"] == "1, 2, 4, 5, 7"
    assert row_of(text, f"`{COSINE}`")["deviations"] == "6, 7"


def test_data_budget_and_precision_are_deviations(
    markdown: Callable[..., str], tmp_path: Path
) -> None:
    sizes = {"sst": 1101, "quora": 1999, "sts": 863}
    folder = write_run(
        tmp_path,
        PCGRAD,
        examples=sizes,
        scale=0.05,
        precision="bf16",
        encoder="/checkpoints/bert-base-uncased",
        max_steps=None,
        deviations=[],
    )
    with (folder / "metrics.jsonl").open("a") as file:
        for task, number in (("sst", 8544), ("quora", 141_506), ("sts", 600)):
            event = {"event": "data", "task": task, "split": "train", "examples": number}
            file.write(json.dumps(event) + "\n")
    text = markdown([tmp_path])
    assert [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")] == [
        "1. Quora dev split: 1,999 examples, not 20,212 or 40,429",
        "2. STS train split: 600 examples, not 6,040",
        "3. budget: all epochs shortened by 0.05 (--scale)",
        "4. precision: bf16 in place of fp32",
        "5. lr = 1e-05",
    ]
