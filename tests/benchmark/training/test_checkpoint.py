"""Saved weights and states against what was saved, and against damaged and hostile files."""

from __future__ import annotations

import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.multitask_bert.records.record import RecordError
from benchmarks.multitask_bert.training.checkpoint import (
    load_model,
    load_state,
    random_states,
    save_model,
    save_state,
    set_random_states,
)

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.second = nn.ModuleDict({"head": nn.Linear(width, 2)})
        self.register_buffer("count", torch.tensor(7))


def make_state() -> dict:
    """Of the kinds of values that a run's state holds."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.first(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return {
        "progress": {"step": 3, "seconds": 0.5, "best_score": None, "best_metrics": {"sst": 0.25}},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": random_states(CPU),
        "metrics_bytes": 12345678901,
        "nested": [1, (2.5, "text"), None, True],
    }


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def is_equal(found, expected) -> bool:
    try:
        assert_equal(found, expected)
    except AssertionError:
        return False
    return True


def test_model_round_trip(tmp_path):
    saved, loaded = Net(), Net()
    saved.first.weight.data[0, 0] = float("nan")
    saved.first.weight.data[0, 1] = -0.0
    path = tmp_path / "run" / "model.safetensors"
    save_model(path, saved)
    load_model(path, loaded)
    for name, value in saved.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        assert found.numpy().tobytes() == value.numpy().tobytes(), name
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_saving_a_model_changes_nothing(tmp_path):
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(tmp_path / "model.safetensors", model)
    assert_equal(dict(model.state_dict()), before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 60, 200, -1])
def test_a_truncated_model_is_refused(tmp_path, num_bytes):
    path = tmp_path / "model.safetensors"
    save_model(path, Net())
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert_model_refused(path)


def test_a_model_with_a_flipped_byte_in_its_header_is_refused(tmp_path):
    """What the file says about its tensors is checked; the numbers themselves cannot be."""
    path = tmp_path / "model.safetensors"
    save_model(path, Net())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(0, header, 3):
        path.write_bytes(flipped(whole, position))
        model = Net()
        try:
            load_model(path, model)
        except RecordError:
            continue
        reference = Net()
        path.write_bytes(whole)
        load_model(path, reference)
        assert is_equal(dict(model.state_dict()), dict(reference.state_dict())), position


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, Net(width=5))
    assert_model_refused(path)
    save_model(path, nn.Linear(4, 3))
    assert_model_refused(path)


def test_a_missing_model_is_refused(tmp_path):
    assert_model_refused(tmp_path / "model.safetensors")


def assert_model_refused(path: Path) -> None:
    with pytest.raises(RecordError, match=re.escape(str(path))) as refused:
        load_model(path, Net())
    assert "\n" not in str(refused.value)


def test_state_round_trip(tmp_path):
    state = make_state()
    path = tmp_path / "state" / "state.pt"
    save_state(path, state)
    assert_equal(load_state(path), state)
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_an_optimizer_goes_on_from_it(tmp_path):
    state = make_state()
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    weights = []
    for source in (state, loaded):
        model = Net()
        model.load_state_dict(source["model"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optimizer.load_state_dict(source["optimizer"])
        model.first(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        weights.append(model.first.weight.detach())
    assert torch.equal(*weights)


def test_a_write_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def refuse(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def assert_state_refused(path: Path) -> None:
    with pytest.raises(RecordError, match=re.escape(str(path))) as refused:
        load_state(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_state_is_refused(tmp_path, share):
    path = tmp_path / "state.pt"
    save_state(path, make_state())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_state_refused(path)


def test_a_flipped_byte_is_never_taken_for_another_state(tmp_path):
    """A disk that returns other bits than it was given ends a run; it does not change its numbers.

    A byte that means nothing, such as a time stamp of the archive, may be any.
    """
    path = tmp_path / "state.pt"
    state = {"step": 3, "weights": torch.arange(64.0)}
    save_state(path, state)
    whole = path.read_bytes()
    accepted = []
    for position in range(0, len(whole), 5):
        path.write_bytes(flipped(whole, position))
        with suppress(RecordError):
            if not is_equal(load_state(path), state):
                accepted.append(position)
    assert accepted == []


@pytest.mark.parametrize("content", [b"\x00" * 1000, b"not a state\n" * 100, b"PK\x03\x04"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    assert_state_refused(path)


def test_a_missing_state_is_refused(tmp_path):
    assert_state_refused(tmp_path / "state.pt")


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], None])
def test_a_file_of_torch_that_is_no_state_is_refused(tmp_path, content):
    path = tmp_path / "state.pt"
    torch.save(content, path)
    assert_state_refused(path)


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "inside a state"])
def test_nothing_in_the_file_is_executed(tmp_path, form, protocol):
    marker, path = tmp_path / "executed", tmp_path / "state.pt"
    hostile = Hostile(marker)
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=protocol))
    else:
        content = {**make_state(), "progress": hostile} if form == "inside a state" else hostile
        is_zip = form != "old torch"
        torch.save(
            content,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=is_zip,
        )
    assert_state_refused(path)
    assert not marker.exists()


def test_the_hostile_file_would_do_it(tmp_path):
    """Else the test above could not fail."""
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists()


def test_random_states_are_put_back(tmp_path):
    torch.rand(5)
    save_state(tmp_path / "state.pt", {"random": random_states(CPU)})
    expected = torch.rand(5), torch.randn(3)
    set_random_states(load_state(tmp_path / "state.pt")["random"], CPU)
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(torch.randn(3), expected[1])
