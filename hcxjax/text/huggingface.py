"""A Hugging Face tokenizer.json as an engine of `Vocabulary`; needs the `tokenizers` library, which is optional."""

import json
import re
from collections.abc import Sequence
from typing import Any

_PROBE = "A \u1112\u1161\u11ab  e\u0301 \ufb01"
"""Text that comes back only if nothing is put before it, lower-cased, composed or replaced."""
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE. Source: GPT-2's encoder.py, bytes_to_unicode."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in printable]
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def _kept(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is left of a normaliser without composition; that anything else gives text back is looked at afterwards."""
    if normalizer is None or normalizer["type"] == "NFC":
        return None
    if normalizer["type"] == "Sequence":
        parts = [kept for part in normalizer["normalizers"] if (kept := _kept(part))]
        return {"type": "Sequence", "normalizers": parts} if parts else None
    if normalizer["type"] == "Replace" and normalizer != _SPACES:
        raise ValueError(f"its normalizer replaces {normalizer['pattern']} by {normalizer['content']!r}")
    return normalizer


class HuggingFaceEngine:
    """A tokenizer.json of byte-level BPE, or of BPE with byte fallback.

    Deviation from the file: a normaliser to form C is left out, so that text in another form comes back; ids of text in
    form C are the same. A file that changes text in another way, such as lower case or a space before it, is refused.

    Args:
      model: the file's bytes.
      path: for messages.
    Raises:
      ValueError: `tokenizers` is missing, the file cannot be read, its decoder is of another kind, or a text does not
        return.
    """

    def __init__(self, model: bytes, path: str):
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(f"{path!r} is a tokenizer.json, which needs: pip install tokenizers") from error
        try:
            settings = json.loads(model)
            # Specials are ids of their own, never found in text; a tokenizer of its own says where they are.
            self.specials = {entry["content"]: entry["id"] for entry in settings["added_tokens"] if entry["special"]}
            added = {entry["id"]: entry["content"] for entry in settings["added_tokens"]}
            settings["added_tokens"] = [entry for entry in settings["added_tokens"] if not entry["special"]]
            settings["post_processor"] = None
            settings["truncation"] = settings["padding"] = None  # both are a batch's business
            settings["normalizer"] = _kept(settings["normalizer"])
            full = tokenizers.Tokenizer.from_str(model.decode())
            plain = tokenizers.Tokenizer.from_str(json.dumps(settings, ensure_ascii=False))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path!r} is no readable tokenizer.json: {error}") from error
        self._plain = plain
        kinds = json.dumps(settings["decoder"]) + json.dumps(settings["pre_tokenizer"])
        byte_level, fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        if not byte_level and not fallback:
            raise ValueError(
                f"{path!r} is neither byte-level BPE nor BPE with byte fallback: not every text can return"
            )
        alphabet = _byte_alphabet()
        ids = full.get_vocab(with_added_tokens=True)
        self.pieces = [b""] * (max(ids.values()) + 1)
        for piece, token in ids.items():
            if piece in self.specials:
                continue
            if token in added:
                self.pieces[token] = piece.encode()
            elif byte_level:
                self.pieces[token] = bytes(alphabet[character] for character in piece)
            elif found := _BYTE_PIECE.fullmatch(piece):
                self.pieces[token] = bytes((int(found[1], 16),))
            else:
                self.pieces[token] = piece.replace("\u2581", " ").encode()
        returned = b"".join(self.pieces[token] for token in self.encode(_PROBE)).decode(errors="replace")
        if returned != _PROBE:
            raise ValueError(
                f"{path!r} gives {_PROBE!r} back as {returned!r}: its normalizer or prefix space changes text; "
                "take it out"
            )

    def encode(self, text: str) -> Sequence[int]:
        """Ids of `text`, where the name of a special is ordinary text."""
        return self._plain.encode(text, add_special_tokens=False).ids
