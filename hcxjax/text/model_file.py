"""Pieces of a SentencePiece model file, read and replaced without its protobuf classes.

The classes that come with sentencepiece demand a newer protobuf than TensorFlow allows, so the three fields that matter
are read off the wire. Source: sentencepiece_model.proto (ModelProto.pieces = 1; piece = 1, score = 2, type = 3).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

NORMAL = 1
"""The type of a piece that is learnt; the others are unknown, control, user defined, unused and byte pieces."""


class Piece(NamedTuple):
    """One entry: its text, its score (the higher, the earlier it is merged) and its type."""

    text: str
    score: float
    kind: int = NORMAL


def read_pieces(model: bytes) -> tuple[list[Piece], bytes]:
    """(the pieces, every other field as it stands)."""
    pieces, rest = [], b""
    for field, value, raw in _fields(model):
        if field == 1 and isinstance(value, bytes):
            text, score, kind = b"", 0.0, NORMAL
            for number, content, _ in _fields(value):
                if isinstance(content, int):
                    kind = content if number == 3 else kind
                elif number == 1:
                    text = content
                elif number == 2:
                    (score,) = struct.unpack("<f", content)
            pieces.append(Piece(text.decode(), score, kind))
        else:
            rest += raw
    return pieces, rest


def write_pieces(pieces: list[Piece], rest: bytes) -> bytes:
    """The model file of `pieces` and of the fields that `read_pieces` left alone."""
    entries = []
    for text, score, kind in pieces:
        content = text.encode()
        entry = b"\x0a" + _varint(len(content)) + content + b"\x15" + struct.pack("<f", score)
        entry += b"" if kind == NORMAL else b"\x18" + _varint(kind)
        entries.append(b"\x0a" + _varint(len(entry)) + entry)
    return b"".join(entries) + rest


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes((number & 127 | 128,))
        number >>= 7
    return out + bytes((number,))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """(number, value, the field as it stands) of every field of a message."""
    at = 0
    while at < len(data):
        key, start = _read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, end = _read_varint(data, start)
        else:
            size, start = {1: (8, start), 5: (4, start)}[kind] if kind != 2 else _read_varint(data, start)
            value, end = data[start : start + size], start + size
        yield key >> 3, value, data[at:end]
        at = end
