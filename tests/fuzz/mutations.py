"""Changes of bytes that readers of JSON, TOML and safetensors trip over, all drawn from one seed."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"Infinity", b"-0.0", b"1.5", b"9223372036854775807", b"1" + b"0" * 400)
WORDS = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"[[]]",
    b'"\\ud800"',
    b"\x1b[2J",
    b"\xff",
    b"=",
    b"[",
    b"{",
    b'"',
    b"\n",
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 10**400, 1e308, "", "x" * 2000, "\x1b[2J", "float32", "F8_E8M0"),
    *([], {}, [[]], [None], {"tuple": [1]}, [2**40, 2**40], [-1], ["tensor", "0"], ["made", "hfp", "x", {}]),
)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content after one to four changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = draw.choice((_flip, _cut, _repeat, _number, _word, _in_json, _in_json))(content, draw)
    return content


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    found = bytearray(content)
    found[draw.randrange(len(found))] ^= draw.randrange(1, 256)
    return bytes(found)


def _cut(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.choice((1, 4, 50, 10_000)) :]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    piece = content[start : start + draw.choice((1, 8, 100))]
    return content[:start] + piece * draw.choice((2, 3, 300)) + content[start:]


def _number(content: bytes, draw: random.Random) -> bytes:
    return _put(content, draw.choice(NUMBERS), draw)


def _word(content: bytes, draw: random.Random) -> bytes:
    return _put(content, draw.choice(WORDS), draw)


def _put(content: bytes, piece: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + piece + content[start + draw.choice((0, 1, len(piece))) :]


def _in_json(content: bytes, draw: random.Random) -> bytes:
    """A value somewhere in the JSON that a content begins with, or has behind eight bytes of its length."""
    framed = len(content) > 8 and content[8:9] == b"{"
    if framed:
        (length,) = struct.unpack("<Q", content[:8])
        head, rest = content[8 : 8 + length], content[8 + length :]
    else:
        head, zero, body = content.partition(b"\0")
        rest = zero + body
    try:
        tree = json.loads(head)
    except (ValueError, RecursionError):
        return content
    changed = json.dumps(_changed(tree, draw)).encode("utf-8", "replace")
    return (struct.pack("<Q", len(changed)) if framed else b"") + changed + rest


def _changed(tree: Any, draw: random.Random) -> Any:
    if isinstance(tree, str) and tree[:1] in ("{", "[") and draw.random() < 0.9:
        try:  # JSON in JSON, as files have it
            return json.dumps(_changed(json.loads(tree), draw))
        except (ValueError, RecursionError):
            return tree
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.15:
        return _nested(draw) if draw.random() < 0.05 else draw.choice(VALUES)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, found = draw.choice(keys), tree.copy()
    if draw.random() < 0.15:
        del found[key]
    else:
        found[key] = _changed(tree[key], draw)
    return found


def _nested(draw: random.Random) -> Any:
    value: Any = 1
    for _ in range(draw.choice((40, 100, 300, 900))):
        value = {"x": value} if draw.random() < 0.5 else [value]
    return value
