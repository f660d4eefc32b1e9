"""Mutations that know the form of an input: of plain bytes a decoder refuses all but a few.

Each is a libFuzzer custom mutator without its size bound: bytes and a source of chance in, bytes
out. `havoc` is libFuzzer's own, for the rest.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import tomllib
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from fuzz import messages

Havoc = Callable[[bytes], bytes]
Mutation = Callable[[bytes, random.Random, Havoc], bytes]

# What breaks decoders: edges of number types, emptiness, other types, depth, odd text.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -0.0, 1, -1, 2, 9, 10, 0.5, 1e-300, 1e300, 1e39, 65504, 65536),
    *(127, 128, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63, 2**64, -(2**63)),
    *(10**30, "", "0", "a", "\0", "é", "\ud800", "😀", "NaN", "AAAA", "a" * 300, "../x", "%s{}"),
    *([], {}, [[]], [[[[1]]]], [1, 2], [[1, 2], [3]], ["a"], [None], {"a": {"b": []}}, {"": 0}),
    *(float("nan"), float("inf"), float("-inf"), [0] * 300),
)
DEPTHS = (2, 17, 33, 65, 1200)
MOST_BYTES = 64 * 1024
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_RAW = 1 << 16  # of an image's pixels, before they are compressed again


def message(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    """Change one message of an input: its head, its JSON, or its bytes."""
    parts = data.split(messages.NEXT)
    index = dice.randrange(len(parts))
    choice = dice.random()
    if choice < 0.05:
        parts.insert(index, dice.choice(parts))
    elif choice < 0.08 and len(parts) > 1:
        del parts[index]
    else:
        parts[index] = _one_message(parts[index], dice, havoc)
    return messages.NEXT.join(parts)


def _one_message(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    head, end, body = data.partition(messages.END_OF_HEAD)
    choice = dice.random()
    if not end or choice < 0.1:
        return havoc(data)
    if choice < 0.3:
        return havoc(head or b"a: b") + end + body
    if choice < 0.45:
        return head + end + havoc(body or b"{}")
    return head + end + json_text(body, dice, havoc)


def json_text(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    """Change values of a JSON text; what stands behind it stays."""
    try:
        text = data.decode("latin-1")
        tree, stop = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return havoc(data)
    try:
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            tree = _changed(tree, dice)
        # Latin-1 in, latin-1 out: what was UTF-8 stays what it was.
        changed = json.dumps(tree, ensure_ascii=dice.random() < 0.5)
        encoded = changed.encode("latin-1", "replace")
    except RecursionError:
        return havoc(data)
    return (encoded + data[stop:])[:MOST_BYTES]


def _changed(tree: Any, dice: random.Random) -> Any:
    spots = list(_spots(tree))
    if not spots:
        return _new(tree, dice)
    node, key = dice.choice(spots)
    choice = dice.randrange(8)
    if choice == 0:
        del node[key]
    elif choice == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif choice == 2 and isinstance(node, dict):
        node[str(_new("a", dice))] = node[key]
    elif choice == 3:
        other, at = dice.choice(spots)
        if key in (node if isinstance(node, dict) else range(len(node))):
            node[key] = json.loads(json.dumps(other[at]))
    else:
        node[key] = _new(node[key], dice)
    return tree


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo and len(found) < 200:
        node = todo.pop()
        if isinstance(node, dict):
            found += [(node, key) for key in node]
            todo += node.values()
        elif isinstance(node, list):
            found += [(node, index) for index in range(min(len(node), 20))]
            todo += node[:20]
    return found


def _new(value: Any, dice: random.Random) -> Any:
    choice = dice.randrange(6)
    if choice == 0:
        nested: Any = value
        for _ in range(dice.choice(DEPTHS)):
            nested = [nested]
        return nested
    if choice == 1 and isinstance(value, int | float):
        return value + dice.choice((-1, 1, 0.5, 256, -256))
    if choice == 2 and isinstance(value, str) and value:
        at = dice.randrange(len(value))
        return value[:at] + dice.choice(("", "x", "\0", "é", "\\", '"', "9")) + value[at + 1 :]
    if choice == 3 and isinstance(value, list):
        return value * dice.choice((0, 2, 3))
    return copy.deepcopy(dice.choice(VALUES))  # it may be changed further


def packed(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    """Change values of MessagePack, or of JSON, behind a first byte that stays."""
    kind, body = data[:1], data[1:]
    if body.startswith(b"{"):
        return kind + json_text(body, dice, havoc)
    try:
        tree = _changed(msgspec.msgpack.decode(body, strict=False), dice)
        return kind + msgspec.msgpack.encode(tree)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return kind + havoc(body or b"\0")


def toml(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    """Change values and keys of the TOML in a message's body; its head anyhow."""
    head, end, body = data.partition(messages.END_OF_HEAD)
    if not end or dice.random() < 0.2:
        return havoc(data)
    try:
        tree = _changed(tomllib.loads(body.decode()), dice)
        lines = [f"{_quoted(key)} = {_inline(value)}" for key, value in tree.items()]
    except (ValueError, RecursionError, AttributeError):
        return head + end + havoc(body or b"a = 1")
    return head + end + "\n".join(lines).encode("utf-8", "replace") + b"\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(each) for each in value) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return '""' if value is None else str(value).lower()


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def png(data: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    """Change a PNG's chunks or pixels and set their checks right; other bytes anyhow."""
    # The first byte chooses settings.
    if not data[1:].startswith(SIGNATURE) or dice.random() < 0.1:
        return havoc(data)
    chunks = _chunks(data[1:])
    if not chunks:
        return havoc(data)
    index = dice.randrange(len(chunks))
    kind, content = chunks[index]
    choice = dice.randrange(8)
    if choice == 0:
        chunks.insert(dice.randrange(len(chunks) + 1), chunks[index])
    elif choice == 1:
        del chunks[index]
    elif kind == b"IHDR" and len(content) == 13:
        chunks[index] = (kind, _header(content, dice))
    elif kind == b"IDAT":
        chunks[index] = (kind, _pixels(content, dice, havoc))
    else:
        chunks[index] = (kind, havoc(content or b"\0"))
    return data[:1] + SIGNATURE + b"".join(_chunk(*each) for each in chunks)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        found.append((kind, data[position + 8 : position + 8 + size]))
        position += 12 + size
    return found


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _header(content: bytes, dice: random.Random) -> bytes:
    width, height, *rest = struct.unpack(">IIBBBBB", content)
    sizes = (0, 1, 2, 3, 7, 8, 9, 64, 255, 256, 4000, 6000, 6324, 65535, 1 << 20, 2**31 - 1, 2**31)
    what = dice.randrange(4)
    if what == 0:
        width = dice.choice(sizes)
    elif what == 1:
        height = dice.choice(sizes)
    else:
        # Bit depth, colour type, and the rest.
        rest[dice.choice((0, 0, 1, 1, 1, 4, 2, 3))] = dice.choice((0, 1, 2, 3, 4, 6, 8, 16, 7))
    return struct.pack(">IIBBBBB", width, height, *rest)


def _pixels(content: bytes, dice: random.Random, havoc: Havoc) -> bytes:
    choice = dice.randrange(4)
    if choice == 0:
        return havoc(content or b"\0")
    try:
        raw = zlib.decompressobj().decompress(content, MOST_RAW)
    except zlib.error:
        return havoc(content)
    if choice == 1:
        raw *= dice.choice((2, 16, 256))
    elif choice == 2:
        raw = raw[: dice.randrange(len(raw) + 1)]
    else:
        raw = havoc(raw or b"\0")
    return zlib.compress(raw, 1)
