"""Text as token ids and back, without loss, whatever kind of file holds the vocabulary; and text as it streams out."""

import codecs
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from hcxjax.text.huggingface import HuggingFaceEngine
from hcxjax.text.sentencepiece_engine import SentencePieceEngine

PAD, END_OF_TEXT, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unk|>"
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
USER, ASSISTANT, END_OF_TURN = "<|user|>", "<|assistant|>", "<|endofturn|>"
SPECIALS = (PAD, END_OF_TEXT, UNKNOWN, FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, USER, ASSISTANT, END_OF_TURN)
"""Control pieces of a vocabulary trained here, in the order of their ids. `<|unk|>` is there because SentencePiece
needs one; byte fallback makes it unreachable."""
NORMALIZES = "<|nfc|>"
"""A control piece that no text yields: a model that has it was trained on text in normal form C, and is given such."""


def reserved(count: int) -> tuple[str, ...]:
    """Names of `count` control pieces kept free for later use."""
    return tuple(f"<|reserved_{number}|>" for number in range(count))


class Engine(Protocol):
    """What reads one kind of vocabulary file."""

    specials: dict[str, int]
    pieces: list[bytes]

    def encode(self, text: str) -> Sequence[int]:
        """Ids of `text`, where the name of a special is ordinary text."""
        ...


class Vocabulary:
    """Text to ids and back, without loss for every valid Unicode string.

    One interface to SentencePiece models and to Hugging Face tokenizer.json files; which of them a file is, its first
    byte tells. Text that spells a special is ordinary text unless the caller asks otherwise.

    Args:
      path: a SentencePiece model with byte fallback, or a tokenizer.json of byte-level BPE.
    Raises:
      ValueError: no such file, or none that every text returns from; a special is asked for that it does not have.
    """

    def __init__(self, path: str):
        if not os.path.isfile(path):
            raise ValueError(f"tokenizer model {path!r} does not exist; change Tokenizer.path")
        with open(path, "rb") as file:
            model = file.read()
        is_json = model.lstrip()[:1] == b"{"
        self.engine: Engine = (HuggingFaceEngine if is_json else SentencePieceEngine)(model, path)
        self.path = path
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.size: int = len(self.engine.pieces)
        self.specials: Mapping[str, int] = self.engine.specials
        self._special_names = {token: name for name, token in self.specials.items()}
        self._bytes = tuple(self.engine.pieces)
        self._normalizes = NORMALIZES in self.specials

    def special(self, name: str) -> int:
        """Id of a special by its name.

        Raises:
          ValueError: this vocabulary has none of that name.
        """
        if name not in self.specials:
            raise ValueError(f"{self.path!r} has no special {name}; it has {', '.join(self.specials) or 'none'}")
        return self.specials[name]

    pad = property(
        lambda self: self.specials.get(PAD, 0),
        doc="Id of padding; 0 where the vocabulary has none, because padding is never a target and never seen.",
    )
    end_of_text = property(lambda self: self.special(END_OF_TEXT), doc="Id that stands before and after a document.")
    fim_prefix = property(lambda self: self.special(FIM_PREFIX), doc="Id of the sentinel before the first third.")
    fim_middle = property(lambda self: self.special(FIM_MIDDLE), doc="Id of the sentinel before what is filled in.")
    fim_suffix = property(lambda self: self.special(FIM_SUFFIX), doc="Id of the sentinel before the last third.")
    user = property(lambda self: self.special(USER), doc="Id that opens a user's turn.")
    assistant = property(lambda self: self.special(ASSISTANT), doc="Id that opens the assistant's turn.")
    end_of_turn = property(lambda self: self.special(END_OF_TURN), doc="Id that closes a turn.")

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32 by id; 0 for specials."""
        return np.array([len(piece) for piece in self._bytes], np.int32)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.array([not piece or piece[0] & 0xC0 != 0x80 for piece in self._bytes])

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str]:
        names = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of `text`.

        Args:
          specials: text that spells a special becomes its id: for templates, never for what a user wrote.
        Raises:
          ValueError: a lone surrogate, which UTF-8 cannot carry; names its position.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"lone surrogate U+{code:04X} at character {error.start}: not valid Unicode") from None
        if self._normalizes:
            text = unicodedata.normalize("NFC", text)
        if not specials:
            return list(self.engine.encode(text))
        ids, start = [], 0
        for found in self._spelled.finditer(text):
            ids += [*self.engine.encode(text[start : found.start()]), self.specials[found.group()]]
            start = found.end()
        return [*ids, *self.engine.encode(text[start:])]

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
