"""What the test files share: one thread, derandomized hypothesis, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps

import pytest
import torch
from hypothesis import settings

# The tensors here are tiny: a second thread costs ten times what it saves on a busy machine.
torch.set_num_threads(1)
settings.register_profile("gradsurgery", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("gradsurgery")


@pytest.fixture(scope="module")
def poisoned_empty() -> Iterator[None]:
    """Fills memory that torch hands out unwritten with NaN, so that reading it shows."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
            (torch.Tensor, "new_empty_strided"),
        ):
            patch.setattr(owner, name, _poisoning(getattr(owner, name)))
        yield


def _poisoning(allocate):
    @wraps(allocate)
    def poisoned(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point() and not tensor.is_meta:
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return poisoned
