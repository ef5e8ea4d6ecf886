"""Small damages of bytes and of JSON, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

FRAGMENTS = (
    *(b"\0", b"\0" * 50, b'"', b'""', b'"\n"', b"\t", b"\t\t\t", b"\r", b"\r\n", b"\n\n", b"\xff"),
    *(b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80", b"\x1b[2J"),
    *(b"nan", b"inf", b"1e999", b"-1", b"1_0", b"0x1", "٣".encode(), "\u2028".encode(), b"\x1a"),
    *(b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"x" * 140_000, b"1" * 100_000 + b"x"),
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7", "utf-8-sig")


def damaged(content: bytes, draw: Random) -> bytes:
    """The bytes with one damage, or a few."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((1, 2, 10, 200)))
        kind = draw.randrange(8)
        if kind == 0 and content:  # a byte flipped
            position = min(start, len(content) - 1)
            flipped = content[position] ^ (1 << draw.randrange(8))
            content = content[:position] + bytes([flipped]) + content[position + 1 :]
        elif kind == 1:  # cut
            content = content[:start]
        elif kind == 2:  # something lost
            content = content[:start] + content[end:]
        elif kind == 3:  # something twice
            content = content[:end] + content[start:]
        elif kind == 4:  # bytes of another file
            content = content[:start] + draw.randbytes(end - start) + content[end:]
        elif kind == 5:  # another encoding
            text = content.decode("utf-8", errors="replace")
            content = text.encode(draw.choice(ENCODINGS), errors="replace")
        else:
            content = content[:start] + draw.choice(FRAGMENTS) + content[start:]
    return content


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, float("nan"), float("inf")),
    *("", "x", "../../x", "/etc/passwd", "\0", "\ud800", "a\nb", "<b>", "9" * 5000, "x" * 100_000),
    *([], [1], ["sst", "sst"], [[]], {}, {"a": {}}, {"sst": "x"}, {"sst": None}, [None] * 2000),
)


def changed(content: Any, draw: Random) -> Any:
    """The JSON value with some entry lost, renamed or put in place of another."""
    content = copy.deepcopy(content)
    place, key = draw.choice(list(_places(content)))
    kind = draw.randrange(6)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[draw.choice(("x", "../x", "\ud800", "event"))] = place.pop(key)
    else:
        place[key] = draw.choice(VALUES)
    return content


def _places(content: Any) -> Any:
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


def text_of(content: Any) -> str:
    return json.dumps(content)
