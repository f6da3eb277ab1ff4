"""Learns a vocabulary from counted text: SentencePiece BPE over words and morphemes, then merges of whole units.

SentencePiece is given words with their weights, not sentences: it then trains in seconds, sees no boundary to cross,
and learns whitespace like any other characters (in sentences it refuses pieces that end in a space, such as a line
break with its indentation). Private-use characters stand for spaces, tabs and line ends while it trains.
"""

import collections
import dataclasses
import io
import logging
import re
from collections.abc import Iterator, Mapping

from hcxjax.data.lexicons import korean_dictionary, word_list
from hcxjax.data.merges import learn_merges
from hcxjax.text.model_file import NORMAL, Piece, read_pieces, write_pieces
from hcxjax.text.morphemes import split_words
from hcxjax.text.words import LETTERS, hangul, parts

BYTES = 256
_SPACE = "\u2581"
_HIDDEN = str.maketrans({" ": "\ue001", "\n": "\ue002", "\t": "\ue003", "\r": "\ue004"})
_SHOWN = str.maketrans({"\ue001": _SPACE, "\ue002": "\n", "\ue003": "\t", "\ue004": "\r"})
_NEVER = re.compile("[\ue000-\ue004\u2581\u2585\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that stay bytes: SentencePiece's own marks, ours, and control characters."""
_INDENTATIONS = (2, 4, 8, 16)
_LONGEST_RUN, _LONGEST_PIECE = 200, 48
_TOTAL = 3e9  # SentencePiece takes whole numbers; weights are scaled to this sum
_RAREST = 2e-7  # share of a run below which joining does not look at it
_THREADS = 4  # the model file records it, so it is fixed: equal settings give equal bytes
_ENOUGH_FOR_ALL_SYLLABLES = 32_000
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What `Tokenizer` says of its training; its attributes are explained there."""

    specials: tuple[str, ...]
    size: int
    morphemes: bool
    joined: float
    character_coverage: float
    dampening: float
    hangul_weight: float
    korean_dictionary: float
    word_list: str | None
    word_list_weight: float
    processes: int


def train_model(counts: Mapping[str, int], recipe: Recipe) -> tuple[bytes, dict[str, int]]:
    """(a SentencePiece model, facts for its card).

    Args:
      counts: how often each run of the text occurs (`hcxjax.text.words.runs`).
    """
    weights = _weights(counts, recipe)
    found = {word for run in weights if (word := hangul(run))}
    morphemes = split_words(sorted(found), recipe.processes) if recipe.morphemes else {word: (word,) for word in found}
    units: dict[str, float] = collections.defaultdict(float)
    for run, weight in weights.items():
        for part in parts(run, morphemes):
            units[part] += weight
    _add_lexicons(units, recipe)
    room = recipe.size - len(recipe.specials) - BYTES
    joined = int(recipe.joined * room)
    kept, rare = _characters(units, recipe, (room - joined) // 2)
    model = _train_sentencepiece(_rows(units, kept), recipe.size - joined, recipe.specials, kept)
    pieces, rest = read_pieces(model)
    pieces = [piece._replace(text=piece.text.translate(_SHOWN)) if piece.kind == NORMAL else piece for piece in pieces]
    base = write_pieces(pieces, rest)
    longer = _join(base, pieces, weights, morphemes, joined) if joined else []
    _log.info("%d pieces, %d of them joined", len(pieces) + len(longer), len(longer))
    # Characters that the text lacks take the place of the last that were joined.
    present = {piece.text for piece in pieces}
    lowest = min(piece.score for piece in pieces + longer)
    absent = [character for character in sorted(kept - present) if character != " "]
    longer = longer[: max(0, joined - len(absent))]
    room = recipe.size - len(pieces) - len(longer)
    characters = [Piece(character, lowest - 1 - number) for number, character in enumerate(absent[:room])]
    facts = {"runs": len(weights), "joined_entries": len(longer), "characters_left_to_bytes": rare}
    return write_pieces(pieces + longer + characters, rest), facts


def _add_lexicons(units: dict[str, float], recipe: Recipe) -> None:
    """Adds general vocabulary, weighed against the text's own words of the same script."""
    korean = sum(weight for unit, weight in units.items() if _is_korean(unit))
    other = sum(weight for unit, weight in units.items() if LETTERS.fullmatch(unit)) - korean
    if recipe.korean_dictionary:
        for word, share in korean_dictionary().items():
            units[word] += share * korean * recipe.korean_dictionary
    if recipe.word_list:
        for word, share in word_list(recipe.word_list, recipe.dampening).items():
            units[word] += share * other * recipe.word_list_weight


def _weights(counts: Mapping[str, int], recipe: Recipe) -> dict[str, float]:
    """The weight of each run; long ones are cut, because SentencePiece counts the symbols of a word in 16 bits."""
    weights = collections.defaultdict(float)
    for run, count in counts.items():
        weight = count**recipe.dampening * (recipe.hangul_weight if _is_korean(run) else 1.0)
        for start in range(0, len(run), _LONGEST_RUN):
            weights[run[start : start + _LONGEST_RUN]] += weight
    return weights


def _is_korean(run: str) -> bool:
    return "가" <= run[-1] <= "힣"


def _characters(units: Mapping[str, float], recipe: Recipe, limit: int) -> tuple[frozenset[str], int]:
    """(characters that get a piece, how many stay bytes): the most common, at most `limit`; in a large vocabulary all
    syllables of KS X 1001 and the compatibility jamo too, so that general Korean needs no bytes."""
    counts: dict[str, float] = collections.defaultdict(float)
    for unit, weight in units.items():
        for character in unit:
            counts[character] += weight
    for character in [character for character in counts if _NEVER.match(character)]:
        del counts[character]
    kept, covered, enough = [], 0.0, recipe.character_coverage * sum(counts.values())
    for character, weight in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= enough or len(kept) >= limit:
            break
        kept.append(character)
        covered += weight
    if recipe.size >= _ENOUGH_FOR_ALL_SYLLABLES:
        kept += [bytes((row, cell)).decode("euc_kr") for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF)]
        kept += [*map(chr, range(0x3131, 0x3164)), *map(chr, range(0x21, 0x7F))]
    return frozenset(kept), len(set(counts) - set(kept))


def _rows(units: Mapping[str, float], kept: frozenset[str]) -> Iterator[str]:
    """`word<tab>count` for SentencePiece, the heaviest first, cut at characters that stay bytes."""
    weights: dict[str, float] = collections.defaultdict(float)
    for unit, weight in units.items():
        if kept.issuperset(unit):
            weights[unit] += weight
        else:
            for part in "".join(character if character in kept else "\0" for character in unit).split("\0"):
                weights[part] += weight
    weights.pop("", None)
    total = sum(weights.values())
    # Runs of spaces are merged before all else: encoding, which sees no edges, must not give a word their last space.
    for length in _INDENTATIONS:
        weights[" " * length] += 10 * total
    scale = _TOTAL / total
    for word, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        if (count := int(weight * scale + 0.5)) > 0:
            yield f"{word.translate(_HIDDEN)}\t{count}"


def _train_sentencepiece(rows: Iterator[str], size: int, specials: tuple[str, ...], kept: frozenset[str]) -> bytes:
    """The model file. Identity normalisation and no dummy prefix keep it lossless."""
    import sentencepiece

    pad, end_of_text, unknown, *control = specials
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=rows,
        model_writer=model,
        input_format="tsv",
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        # Coverage is summed in 32-bit floats, where the rarest of 10^11 characters vanish.
        required_chars="".join(sorted(kept)).translate(_HIDDEN),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentencepiece_length=_LONGEST_PIECE,
        max_sentence_length=_LONGEST_RUN * 16,
        num_threads=_THREADS,
        control_symbols=control,
        pad_id=0,
        pad_piece=pad,
        eos_id=1,
        eos_piece=end_of_text,
        unk_id=2,
        unk_piece=unknown,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _join(
    model: bytes,
    pieces: list[Piece],
    weights: Mapping[str, float],
    morphemes: Mapping[str, tuple[str, ...]],
    count: int,
) -> list[Piece]:
    """Up to `count` further pieces, each of whole units, merged after all of `pieces`."""
    texts = [piece.text for piece in pieces]
    ids = {text: number for number, text in enumerate(texts)}
    learnt = [piece.kind == NORMAL for piece in pieces]

    def join(left: int, right: int) -> int | None:
        text = texts[left] + texts[right]
        if text in ids or len(text) > _LONGEST_PIECE:
            return None
        ids[text] = len(texts)
        texts.append(text)
        return ids[text]

    lowest = min(piece.score for piece in pieces)
    out = []
    for unit in learn_merges(list(_sequences(model, learnt, weights, morphemes)), join):
        if len(out) == count:
            break
        out.append(Piece(texts[unit], lowest - 1 - len(out)))
    return out


def _sequences(
    model: bytes, learnt: list[bool], weights: Mapping[str, float], morphemes: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[list[int], float]]:
    """Units that may be joined, with their weight: a word's morphemes that are one piece each, a run's words."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rarest = _RAREST * sum(weights.values())
    for run, weight in weights.items():
        if weight < rarest or _NEVER.search(run):
            continue
        word = hangul(run)
        if word is not None:
            encoded = processor.encode(parts(run, morphemes))
            units = [ids[0] if len(ids) == 1 else None for ids in encoded]
        elif LETTERS.fullmatch(run):
            continue  # a word by itself: joining its pieces would only lengthen the first stage
        else:
            units = list(processor.encode(run))
        row: list[int] = []
        for unit in [*units, None]:
            if unit is not None and learnt[unit]:
                row.append(unit)
                continue
            if len(row) > 1:
                yield row, weight
            row = []
