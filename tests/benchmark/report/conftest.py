"""A report in a moment, for the tests of its text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.multitask_bert.report.build import report


@pytest.fixture
def markdown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Give what ``report`` writes, without its plots, which take a second or two."""
    monkeypatch.setattr("benchmarks.multitask_bert.report.plots.all.PLOTS", {})
    return lambda *arguments: report(*arguments).markdown
