"""The tasks, and the shapes of their data: the vocabulary that every other file shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Task:
    """One task: its files, their columns, and what a model must give for them.

    ``kind`` says what a label is and what the model's ``num_outputs`` numbers are: ``"classes"``
    has one logit a class, ``"binary"`` one logit, ``"score"`` the score itself.
    """

    name: str
    title: str
    kind: Literal["classes", "binary", "score"]
    num_outputs: int
    text_columns: tuple[str, ...]
    label_column: str
    label_min: int
    label_max: int
    metric: Literal["accuracy", "pearson"]
    files: Mapping[str, str] = field(hash=False)  # "train", "dev", "test" -> file name
    hand_in: str = ""  # what its prediction files begin with; its name where it says nothing
    hand_in_header: str = "Prediction"
    is_published: bool = False  # whether `fetch` knows where its files are

    @property
    def is_pair(self) -> bool:
        """Tells whether an example is two sentences."""
        return len(self.text_columns) == 2


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="sst",
                title="SST",
                kind="classes",
                num_outputs=5,
                text_columns=("sentence",),
                label_column="sentiment",
                label_min=0,
                label_max=4,
                metric="accuracy",
                files={
                    "train": "ids-sst-train.csv",
                    "dev": "ids-sst-dev.csv",
                    "test": "ids-sst-test-student.csv",
                },
                hand_in_header="Predicted_Sentiment",
                is_published=True,
            ),
            Task(
                name="quora",
                title="Quora",
                kind="binary",
                num_outputs=1,
                text_columns=("sentence1", "sentence2"),
                label_column="is_duplicate",
                label_min=0,
                label_max=1,
                metric="accuracy",
                files={
                    "train": "quora-train.csv",
                    "dev": "quora-dev.csv",
                    "test": "quora-test-student.csv",
                },
                hand_in="para",
                hand_in_header="Predicted_Is_Paraphrase",
                is_published=True,
            ),
            Task(
                name="sts",
                title="STS",
                kind="score",
                num_outputs=1,
                text_columns=("sentence1", "sentence2"),
                label_column="similarity",
                label_min=0,
                label_max=5,
                metric="pearson",
                files={
                    "train": "sts-train.csv",
                    "dev": "sts-dev.csv",
                    "test": "sts-test-student.csv",
                },
                hand_in_header="Predicted_Similiary",  # as the starter code spells it
                is_published=True,
            ),
            Task(
                name="cfimdb",
                title="CFIMDB",
                kind="classes",
                num_outputs=2,
                text_columns=("sentence",),
                label_column="sentiment",
                label_min=0,
                label_max=1,
                metric="accuracy",
                files={
                    "train": "ids-cfimdb-train.csv",
                    "dev": "ids-cfimdb-dev.csv",
                    "test": "ids-cfimdb-test-student.csv",
                },
                hand_in_header="Predicted_Sentiment",
                is_published=True,
            ),
        )
    }
)

# What `--data` names beside folders, and the encoder that suits each.
BUILT_IN_DATA: Mapping[str, str] = MappingProxyType({"synthetic": "tiny", "conflict": "narrow"})
