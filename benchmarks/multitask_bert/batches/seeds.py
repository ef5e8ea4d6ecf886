"""Seeds for generators that draw apart from each other."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object, num_bytes: int = 8) -> int:
    """Derive a seed from the numbers and names that tell a generator from all others.

    It is a hash, not a sum: run 0's second epoch must not repeat run 1's first.

    Args:
        parts: such as the run's seed and an epoch; they are told apart as Python writes them.
        num_bytes: of the seed. Another number of bytes gives another seed, not a part of it.

    Example:
        >>> derive_seed(11711, 0, num_bytes=4), derive_seed(11711, 1, num_bytes=4)
        (3752136904, 3711336991)
    """
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest(), "big")
