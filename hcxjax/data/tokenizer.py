"""Trains the vocabulary on first use: SentencePiece BPE with byte fallback, merges kept inside morphemes."""

import collections
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from tqdm import tqdm

from hcxjax.data.publishing import publish
from hcxjax.text.morphemes import Morphemes
from hcxjax.text.vocabulary import SPECIALS, Vocabulary, reserved

MODEL_FILE, CARD_FILE = "tokenizer.model", "tokenizer.json"

_BOUNDARY = "\ue0ff"  # private use: stands between morphemes while training, never in a piece
_SPACE = "\u2581"
_CHUNK = 8192
"""Characters of a training sentence. SentencePiece silently skips longer ones than its limit, and addresses the symbols
of a word by 16 bits."""
_BYTES = 256
_log = logging.getLogger(__name__)
_THREADS = 4  # the model file records it, so it is fixed: equal settings give equal bytes


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Which vocabulary is used: a given model file, or one that is trained on the corpus.

    Attributes:
      size: entries of the vocabulary that the model is built for; the tokenizer may have fewer, never more.
      path: a SentencePiece model; None trains one.
      reserved: control pieces kept free for later use.
      morphemes: keeps merges inside Korean morphemes. Source: HyperCLOVA X, arXiv:2404.01954, section 2 (analyser and
        method are not disclosed: python-mecab-ko through SentencePiece's `pretokenization_delimiter` is our choice).
      character_coverage: share of the training text's characters that get a piece of their own; the rest are bytes.
        At most half of the entries that are left are single characters, whatever this says.
      sample_bytes: UTF-8 bytes of text that the training reads, over all sources.
      rates: source name → its share of the bytes read, up to a common factor; None gives equal shares.
    """

    size: int = 2048
    path: str | None = None
    reserved: int = 16
    morphemes: bool = True
    character_coverage: float = 0.9995
    sample_bytes: int = 20_000_000
    rates: Mapping[str, float] | None = None

    def load(self, directory: str, texts: Callable[[], Iterable[str]]) -> Vocabulary:
        """The vocabulary; where `path` is None it is trained into `directory` unless it is there already.

        Args:
          directory: becomes a folder with tokenizer.model and tokenizer.json, its card; whole or absent.
          texts: called when training; what it gives is read up to `sample_bytes`.
        Raises:
          ValueError: the vocabulary has more entries than `size`, or the one in `directory` had other settings.
        """
        if self.path is None:
            publish(directory, lambda folder: self.train(folder, texts()))
            self._check_card(directory)
        vocabulary = Vocabulary(self.path or os.path.join(directory, MODEL_FILE))
        if vocabulary.size > self.size:
            raise ValueError(
                f"{vocabulary.path!r} has {vocabulary.size} entries, but Tokenizer.size (VOCAB_SIZE) is {self.size}; "
                f"set it to {vocabulary.size} or more"
            )
        return vocabulary

    def train(self, folder: str, texts: Iterable[str]) -> None:
        """Writes tokenizer.model and its card tokenizer.json into `folder`; equal input gives equal bytes.

        Raises:
          ValueError: no text, or `size` has no room for bytes and specials.
        """
        meta = len(SPECIALS) + self.reserved + _BYTES
        if self.reserved < 0 or self.size < meta + 16:
            raise ValueError(
                f"Tokenizer.size is {self.size}; specials, reserved ({self.reserved}) and bytes alone take {meta}, "
                f"so it must be at least {meta + 16}"
            )
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"Tokenizer.character_coverage is {self.character_coverage}; it must lie in (0, 1]")
        sentences, counts = self._sample(texts)
        if not sentences:
            raise ValueError("the tokenizer has no text to train on: every source of Corpus.sources was empty")
        rare = self._rare(sentences, (self.size - meta) // 2)
        _log.info("training a tokenizer of %d entries on %d bytes", self.size, counts["bytes"])
        # SentencePiece's own coverage cannot go below 0.98; a boundary in their place keeps merges off them too.
        hidden = str.maketrans(dict.fromkeys(rare, _BOUNDARY))
        model = _train_sentencepiece([text.translate(hidden) for text in sentences], self.size, self.reserved)
        with open(os.path.join(folder, MODEL_FILE), "wb") as file:
            file.write(model)
        vocabulary = Vocabulary(os.path.join(folder, MODEL_FILE))
        card = {"settings": self._settings(), "trained_on": counts, "entries": vocabulary.size}
        card |= {"characters_left_to_bytes": len(rare), "sha256": vocabulary.fingerprint}
        with open(os.path.join(folder, CARD_FILE), "w", encoding="utf-8") as file:
            json.dump(card, file, indent=2, ensure_ascii=False)

    def _settings(self) -> dict[str, object]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "path"}

    def _check_card(self, directory: str) -> None:
        """ValueError unless the model in `directory` is whole and was trained with these settings."""
        path = os.path.join(directory, CARD_FILE)
        try:
            with open(path, encoding="utf-8") as file:
                card = json.load(file)
            with open(os.path.join(directory, MODEL_FILE), "rb") as file:
                found = hashlib.sha256(file.read()).hexdigest()
            trained_with, expected = card["settings"], card["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} and its model cannot be read ({error}); delete {directory} to train anew"
            ) from error
        if found != expected:
            raise ValueError(
                f"{directory}/tokenizer.model is corrupted: sha256 {found}, expected {expected}; "
                f"delete {directory} to train anew"
            )
        for name, value in self._settings().items():
            if name not in trained_with or trained_with[name] != value:
                raise ValueError(
                    f"Tokenizer.{name} is {value}, but the tokenizer in {directory} was trained with "
                    f"{trained_with}; set it back, or delete that folder to train anew"
                )

    def _sample(self, texts: Iterable[str]) -> tuple[list[str], dict[str, int]]:
        """Sentences for SentencePiece, with boundaries marked, and how much was read."""
        mark = Morphemes().mark if self.morphemes else lambda text, boundary: text
        sentences, counts = [], {"documents": 0, "bytes": 0}
        with tqdm(total=self.sample_bytes, unit="B", unit_scale=True, desc="tokenizer: reading", leave=False) as bar:
            for text in texts:
                for chunk in _chunks(text.replace(_BOUNDARY, " ").replace(_SPACE, " ")):
                    # SentencePiece strips newlines from the end of a sentence; the last boundary keeps them.
                    sentences.append(mark(chunk, _BOUNDARY) + _BOUNDARY)
                size = len(text.encode())
                counts["documents"] += 1
                counts["bytes"] += size
                bar.update(size)
                if counts["bytes"] >= self.sample_bytes:
                    break
        return sentences, counts

    def _rare(self, sentences: list[str], limit: int) -> list[str]:
        """Characters that stay bytes: those beyond `character_coverage`, and all but the `limit` most common."""
        counts = collections.Counter()
        for sentence in sentences:
            counts.update(sentence)
        del counts[_BOUNDARY], counts[" "]
        enough, covered, rare = self.character_coverage * counts.total(), 0, []
        for rank, (character, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
            if covered >= enough or rank >= limit:
                rare.append(character)
            covered += count
        return rare


def _chunks(text: str) -> Iterator[str]:
    """`text` in parts of at most `_CHUNK` characters, cut after a newline or space where there is one."""
    start = 0
    while len(text) - start > _CHUNK:
        end = start + _CHUNK
        cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end)) + 1
        end = cut if cut > start else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _train_sentencepiece(sentences: list[str], size: int, reserved_count: int) -> bytes:
    """The model file. Identity normalisation, no dummy prefix and whitespace pieces keep it lossless."""
    import sentencepiece

    pad, end_of_text, unknown, *control = SPECIALS
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        pretokenization_delimiter=_BOUNDARY,
        max_sentence_length=_CHUNK * 16,
        num_threads=_THREADS,
        control_symbols=[*control, *reserved(reserved_count)],
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
