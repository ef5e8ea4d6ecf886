"""A second Ctrl-C against Python's own answer to it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from benchmarks.multitask_bert.model.encoder import MinBert
from benchmarks.multitask_bert.model.tiny import tiny_encoder
from benchmarks.multitask_bert.recipes.recipe import (
    Recipe,
)
from benchmarks.multitask_bert.training.loop import run
from tests.benchmark.training.small_runs import make_plan, make_recipe

pytestmark = pytest.mark.usefixtures("short_intervals")


def test_a_second_interrupt_ends_the_process_as_usual(tmp_path):
    """The first waits for the step to be whole, which may be long; the second does not."""

    def make_encoder(recipe: Recipe) -> tuple[MinBert, Any]:
        encoder, tokenizer = tiny_encoder(recipe)
        encoder.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
        return encoder, tokenizer

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(make_plan(tmp_path, make_recipe(), make_encoder=make_encoder))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
