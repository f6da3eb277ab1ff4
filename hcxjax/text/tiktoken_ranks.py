"""A tiktoken ranks file as an engine: for comparing with GPT's vocabularies; needs the `tiktoken` library.

Ranks are not ours to ship. `npm pack js-tiktoken` brings a package whose dist/ranks/cl100k_base.js is such a file.
"""

import base64
import json
import re
from collections.abc import Sequence

_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""What .tiktoken files, which hold no pattern, are cut with."""


class TiktokenEngine:
    """Ranks of js-tiktoken (.js, .cjs, .json: pattern and ranks) or of tiktoken itself (lines of `base64 rank`).

    Args:
      path: the file.
    Raises:
      ValueError: `tiktoken` is missing, or the file is of neither form.
    """

    def __init__(self, path: str):
        try:
            import tiktoken
        except ImportError as error:
            raise ValueError(f"{path!r} holds tiktoken ranks, which need: pip install tiktoken") from error
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            pattern, ranks = _js(text) if "bpe_ranks" in text else (_CL100K, _lines(text))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path!r} is no file of tiktoken ranks: {error}") from error
        self._encoding = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.specials: dict[str, int] = {}
        self.pieces = [b""] * (max(ranks.values()) + 1)
        for piece, rank in ranks.items():
            self.pieces[rank] = piece

    def encode(self, text: str) -> Sequence[int]:
        """Ids of `text`."""
        return self._encoding.encode_ordinary(text)


def _js(text: str) -> tuple[str, dict[bytes, int]]:
    pattern, packed = (
        json.loads(f'"{re.search(name + chr(34) + "?" + body, text)[1]}"')  # type: ignore[index]
        for name, body in (("pat_str", r':\s*"((?:[^"\\]|\\.)*)"'), ("bpe_ranks", r':\s*"((?:[^"\\]|\\.)*)"'))
    )
    ranks = {}
    for line in filter(None, packed.split("\n")):
        _, first, *pieces = line.split(" ")
        for number, piece in enumerate(pieces):
            ranks[base64.b64decode(piece)] = int(first) + number
    return pattern, ranks


def _lines(text: str) -> dict[bytes, int]:
    rows = (line.split() for line in text.splitlines() if line)
    return {base64.b64decode(piece, validate=True): int(rank) for piece, rank in rows}
