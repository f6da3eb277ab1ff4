"""A SentencePiece model as an engine of `Vocabulary`: lossless, and fast on long texts."""

import itertools
import re
from collections.abc import Sequence

_SPACE = "\u2581"  # how SentencePiece spells a space; in a user's text it has to be escaped
_KNOWN_PARTS = 1 << 18
_WORTH_A_BATCH = 128
_LONGEST_KNOWN = 64  # characters; longer parts seldom come again
_PARTS = re.compile(r"\d|\s*[^\s\d]+(?:(?<=[^\w\s]|_)[^\S ]\s*[^\s\d]*)*|\s+")
"""Parts that text is cut into: edges lie around digits, before a space, and between a letter and a line end."""
_ACROSS = re.compile(r"\S |[^\W_][^\S ]|\d.|.\d", re.DOTALL)
"""What a piece that runs across such an edge holds. Where a piece does, text is not cut."""


class SentencePieceEngine:
    """A SentencePiece model with byte fallback and no normalisation.

    SentencePiece's own time is mostly spent on long texts, so text is cut first and each part encoded once. Only places
    that no piece of the model runs across are cut: a merge there cannot happen, and merges elsewhere do not see it, so
    the ids are those of the whole text. All pieces are looked at for this; a model that has others is not cut for.

    Args:
      model: the file's bytes.
      path: for messages.
    Raises:
      ValueError: no SentencePiece model, one that changes its text, or one without byte fallback.
    """

    def __init__(self, model: bytes, path: str):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path!r} ({len(model)} bytes) is no readable SentencePiece model: {error}") from error
        size = self._model.get_piece_size()
        byte_pieces = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        unreachable = sum(not self._model.is_byte(piece) for piece in byte_pieces)
        if unreachable:
            raise ValueError(f"{path!r} has no piece for {unreachable} of 256 bytes; train it with byte_fallback")
        if self._model.normalize("  A\u00e9\t ") != "  A\u00e9\t ".replace(" ", _SPACE):
            raise ValueError(f"{path!r} normalises its text, which would not come back; train it with identity rules")
        self.specials = {
            self._model.id_to_piece(token): token
            for token in range(size)
            if self._model.is_control(token) or self._model.is_unknown(token)
        }
        self.pieces = [self._bytes_of(token) for token in range(size)]
        self._escape = [byte_pieces[byte] for byte in _SPACE.encode()]
        self._cuts = not any(_ACROSS.search(piece.decode(errors="ignore")) for piece in self.pieces)
        self._known: dict[str, Sequence[int]] = {}

    def _bytes_of(self, token: int) -> bytes:
        piece = self._model.id_to_piece(token)
        if piece in self.specials:
            return b""
        return bytes((int(piece[3:5], 16),)) if self._model.is_byte(token) else piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> Sequence[int]:
        """Ids of `text`, where the name of a special is ordinary text."""
        if _SPACE in text:
            first, *rest = text.split(_SPACE)
            ids = list(self.encode(first))
            for part in rest:
                ids += self._escape
                ids += self.encode(part)
            return ids
        if not self._cuts:
            return self._model.encode(text)
        parts, known = _PARTS.findall(text), self._known
        if new := [part for part in dict.fromkeys(parts) if part not in known]:
            if len(known) + len(new) > _KNOWN_PARTS:
                known.clear()
                new = list(dict.fromkeys(parts))
            # A batch starts a thread: 0.1 ms or more, as much as many single calls.
            together = len(new) > _WORTH_A_BATCH
            encoded = self._model.encode(new, num_threads=1) if together else map(self._model.encode, new)
            known.update(zip(new, encoded, strict=True))
        ids = list(itertools.chain.from_iterable(map(known.__getitem__, parts)))
        for part in new:
            if len(part) > _LONGEST_KNOWN:
                del known[part]
        return ids

    def encode_whole(self, text: str) -> Sequence[int]:
        """What the model itself gives for a text without U+2581: for tests, and for the speed of others' models."""
        return self._model.encode(text)
