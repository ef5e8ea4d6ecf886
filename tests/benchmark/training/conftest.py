"""Logged steps close together, for the tests of runs of a few steps."""

import pytest

from benchmarks.multitask_bert.training import loop as train


@pytest.fixture
def short_intervals(monkeypatch):
    """More "train" events than the few steps here would leave."""
    monkeypatch.setattr(train, "LOG_EVERY", 4)
