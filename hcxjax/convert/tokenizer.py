"""Tokenizers as Hugging Face keeps them: its files copied as they are, a SentencePiece model rewritten as one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcxjax.text.model_file import NORMAL, Piece, read_pieces
from hcxjax.text.templates import Template, template_for
from hcxjax.text.vocabulary import END_OF_TEXT, NORMALIZES, PAD, Vocabulary

TOKENIZER, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
TokenIds = dict[str, int | list[int] | None]
"""`bos_token_id`, `eos_token_id` and `pad_token_id`, as config.json names them; null where there is none."""
FILES = (
    TOKENIZER,
    SETTINGS,
    "special_tokens_map.json",
    GENERATION,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What belongs to a tokenizer, where it is there."""
_BYTE, _CONTROL, _UNKNOWN = 6, 3, 2  # kinds of a SentencePiece piece
_SPACE = "\u2581"


def copy_tokenizer(source: str | Path, target: str | Path) -> list[Path]:
    """Copies a tokenizer's files as they are, additional chat templates too; the files of `source` that were copied."""
    source, target = Path(source), Path(target)
    target.mkdir(exist_ok=True)
    files = [source / name for name in FILES if (source / name).is_file()]
    for file in files:
        shutil.copyfile(file, target / file.name)
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", target / "additional_chat_templates")
        files += sorted((source / "additional_chat_templates").iterdir())
    return files


def tokenizer_json(model: bytes) -> dict[str, Any]:
    """A tokenizer.json that gives the same ids as a SentencePiece model of ours: BPE with byte fallback.

    SentencePiece joins, of all neighbours whose union is a piece, the pair of the best piece first; here every way to
    cut a piece into two is a merge of the piece's rank. Spaces stay spaces: spelled as U+2581, as SentencePiece does,
    that character itself would turn into one.

    Deviation: text that spells a special becomes that special, as always with `tokenizers`
    (`Vocabulary.encode(..., specials=True)`).

    Raises:
      ValueError: pieces of a kind that has no counterpart; names them.
    """
    pieces, _ = read_pieces(model)
    vocab = {piece.text.replace(_SPACE, " "): token for token, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ValueError("the tokenizer has pieces that differ only in U+2581 and a space: it cannot be rewritten")
    normal = [piece for piece in pieces if piece.kind == NORMAL]
    strange = [piece.text for piece in pieces if piece.kind not in (NORMAL, _BYTE, _CONTROL, _UNKNOWN)]
    lone = sorted({character for piece in normal for character in piece.text} - {piece.text for piece in normal})
    if strange or lone:
        raise ValueError(
            "the tokenizer cannot be rewritten as tokenizer.json: "
            f"user-defined or unused pieces {strange[:5]}, characters that are in pieces and no piece {lone[:5]}"
        )
    specials = [(token, piece.text) for token, piece in enumerate(pieces) if piece.kind in (_CONTROL, _UNKNOWN)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, name) for token, name in specials],
        "normalizer": {"type": "NFC"} if any(name == NORMALIZES for _, name in specials) else None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(normal),
        },
    }


def write_tokenizer_json(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes tokenizer.json: that of the vocabulary, or one that equals its SentencePiece model."""
    content = Path(vocabulary.path).read_bytes()
    if content.lstrip()[:1] == b"{":
        (folder / TOKENIZER).write_bytes(content)
    else:
        _write(folder / TOKENIZER, tokenizer_json(content))


def describe_tokenizer(vocabulary: Vocabulary, folder: Path) -> TokenIds:
    """Writes tokenizer_config.json, special_tokens_map.json and the chat template beside a tokenizer.json.

    Files that are there stay as they are. Nothing is put before a text: our documents follow an end-of-text token,
    which the chat template puts there.

    Returns:
      The ids of begin, end and padding: those of a generation_config.json that is there, else the vocabulary's own. The
      end ids are those that end an answer in the vocabulary's chat template, or the end of text where it has none.
    """
    template = template_for(vocabulary)
    tokens = _token_ids(vocabulary, template)
    ends = tokens["eos_token_id"]
    by_id = {token: name for name, token in vocabulary.specials.items()}
    named = {
        "bos_token": tokens["bos_token_id"],
        "eos_token": ends[0] if isinstance(ends, list) else ends,
        "pad_token": tokens["pad_token_id"],
    }
    names = {role: by_id[token] for role, token in named.items() if token is not None}
    if not (folder / SETTINGS).is_file():
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            **names,
        }
        _write(folder / SETTINGS, settings | ({"chat_template": template.jinja()} if template else {}))
        _write(folder / "special_tokens_map.json", names)
        if template:
            (folder / "chat_template.jinja").write_text(template.jinja(), encoding="utf-8")
    if (folder / GENERATION).is_file():
        given = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
        tokens |= {name: given[name] for name in tokens if name in given}
    return tokens


def _token_ids(vocabulary: Vocabulary, template: Template | None) -> TokenIds:
    text = vocabulary.specials.get(END_OF_TEXT)
    ends = list(template.stop_ids(vocabulary)) if template else text
    return {"bos_token_id": text, "eos_token_id": ends, "pad_token_id": vocabulary.specials.get(PAD)}


def write_generation(folder: str | Path, tokens: TokenIds) -> None:
    """generation_config.json with these ids."""
    _write(Path(folder) / GENERATION, {name: value for name, value in tokens.items() if value is not None})


def _added(token: int, name: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, **plain, "special": True}


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best piece first."""
    known = {piece.text for piece in pieces}
    ranked = sorted(pieces, key=lambda piece: -piece.score)
    return [
        (piece.text[:cut].replace(_SPACE, " "), piece.text[cut:].replace(_SPACE, " "))
        for piece in ranked
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in known and piece.text[cut:] in known
    ]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
