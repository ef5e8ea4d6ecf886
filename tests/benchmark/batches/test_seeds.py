"""Derived seeds against the hashes that committed records were made with."""

from __future__ import annotations

import hashlib

import pytest

from benchmarks.multitask_bert.batches.seeds import derive_seed


@pytest.mark.parametrize(
    ("parts", "text"),
    [((11711, 2), b"11711 2"), ((0, "process", 3), b"0 process 3"), ((7, "nli"), b"7 nli")],
)
@pytest.mark.parametrize("num_bytes", [4, 8])
def test_a_seed_is_a_hash_of_what_is_written(
    parts: tuple[object, ...], text: bytes, num_bytes: int
) -> None:
    digest = hashlib.blake2b(text, digest_size=num_bytes).digest()
    assert derive_seed(*parts, num_bytes=num_bytes) == int.from_bytes(digest, "big")


def test_no_epoch_of_a_run_is_that_of_another() -> None:
    seeds = {derive_seed(seed, epoch, num_bytes=4) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
