"""A SentencePiece model as a lossless map between text and token ids, and text as it streams out of a model."""

import codecs
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PAD, END_OF_TEXT, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unk|>"
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
USER, ASSISTANT, END_OF_TURN = "<|user|>", "<|assistant|>", "<|endofturn|>"
SPECIALS = (PAD, END_OF_TEXT, UNKNOWN, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, USER, ASSISTANT, END_OF_TURN)
"""Control pieces in the order of their ids. `<|unk|>` is there because SentencePiece needs one; byte fallback makes it
unreachable."""

_SPACE = "\u2581"  # how SentencePiece spells a space; in a user's text it has to be escaped


def reserved(count: int) -> tuple[str, ...]:
    """Names of `count` control pieces kept free for later use."""
    return tuple(f"<|reserved_{number}|>" for number in range(count))


class Vocabulary:
    """Text to ids and back, without loss for every valid Unicode string.

    Text that spells a special is ordinary text: specials are SentencePiece *control* symbols, which encoding never
    yields. U+2581, which SentencePiece alone gives back as a space, is encoded as its three byte pieces.

    Args:
      path: a SentencePiece model with byte fallback and the control pieces `SPECIALS`.
    Raises:
      ValueError: no such file, no SentencePiece model, no byte fallback, or a special is missing.
    """

    def __init__(self, path: str):
        if not os.path.isfile(path):
            raise ValueError(f"tokenizer model {path!r} does not exist; change Tokenizer.path")
        import sentencepiece

        with open(path, "rb") as file:
            model = file.read()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{path!r} ({len(model)} bytes) is no readable SentencePiece model: {error}") from error
        self.path = path
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.size: int = self._model.get_piece_size()
        self.specials: Mapping[str, int] = {
            self._model.id_to_piece(token): token
            for token in range(self.size)
            if self._model.is_control(token) or self._model.is_unknown(token)
        }
        self._special_names = {token: name for name, token in self.specials.items()}
        self._bytes = tuple(self._read_bytes(token) for token in range(self.size))
        self._check()

    def _read_bytes(self, token: int) -> bytes:
        if token in self._special_names:
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes((int(piece[3:5], 16),))
        return piece.replace(_SPACE, " ").encode()

    def _check(self) -> None:
        if missing := [name for name in SPECIALS if name not in self.specials]:
            raise ValueError(f"{self.path!r} has no control piece {', '.join(missing)}; train it with Tokenizer")
        byte_pieces = (self._model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256))
        unreachable = [piece for piece in byte_pieces if not self._model.is_byte(piece)]
        if unreachable:
            raise ValueError(
                f"{self.path!r} has no piece for {len(unreachable)} of 256 bytes; train it with byte_fallback"
            )

    pad = property(lambda self: self.specials[PAD], doc="Id of padding.")
    end_of_text = property(lambda self: self.specials[END_OF_TEXT], doc="Id that stands before and after a document.")
    fim_prefix = property(lambda self: self.specials[FIM_PREFIX], doc="Id of the sentinel before the first third.")
    fim_middle = property(lambda self: self.specials[FIM_MIDDLE], doc="Id of the sentinel before what is filled in.")
    fim_suffix = property(lambda self: self.specials[FIM_SUFFIX], doc="Id of the sentinel before the last third.")
    user = property(lambda self: self.specials[USER], doc="Id that opens a user's turn.")
    assistant = property(lambda self: self.specials[ASSISTANT], doc="Id that opens the assistant's turn.")
    end_of_turn = property(lambda self: self.specials[END_OF_TURN], doc="Id that closes a turn.")

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32 by id; 0 for specials."""
        return np.array([len(piece) for piece in self._bytes], np.int32)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.array([not piece or piece[0] & 0xC0 != 0x80 for piece in self._bytes])

    @functools.cached_property
    def _escape(self) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no special among them.

        Raises:
          ValueError: a lone surrogate, which UTF-8 cannot carry; names its position.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"lone surrogate U+{code:04X} at character {error.start}: not valid Unicode") from None
        if _SPACE not in text:
            return self._model.encode(text)
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE)):
            ids += self._escape * bool(number) + self._model.encode(part)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one id; b"" for a special and for ids of a vocabulary padded beyond `size`."""
        if token < 0:
            raise ValueError(f"token id {token} is negative")
        return self._bytes[token] if token < self.size else b""

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Text of `ids`; bytes that form no character become U+FFFD, which only ids of no text can show.

        Args:
          specials: shows specials by name; otherwise they render as nothing.
        """
        names = {token: name.encode() for token, name in self._special_names.items()} if specials else {}
        pieces = (names[token] if token in names else self.token_bytes(token) for token in map(int, ids))
        return b"".join(pieces).decode(errors="replace")

    def starts_character(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Whether text may be cut just before each id without splitting a UTF-8 character; bool, one per id."""
        return self._starts[np.asarray(ids, np.int64)]


class StreamDecoder:
    """Text of ids as they arrive, never cut inside a character: bytes wait until their character is whole.

    Bytes of a character that never becomes whole are not shown.
    """

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes, possibly none."""
        return self._decoder.decode(self._vocabulary.token_bytes(int(token)))

    def text(self, tokens: Iterable[int]) -> str:
        """The whole characters of `tokens`."""
        return "".join(self.push(token) for token in tokens)
