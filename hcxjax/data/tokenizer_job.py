"""Training a vocabulary as a job of its own, which a gin file names."""

import dataclasses
import logging
import os

from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainTokenizer:
    """Trains `corpus.tokenizer` on the corpus: `main.job = @TrainTokenizer()`.

    Attributes:
      corpus: sources, their cleaning, and the tokenizer with its rates; its directory holds what is read and cleaned.
      output: folder to make; holds tokenizer.model and its card, tokenizer.json.
      folder: where the relative paths of the corpus's sources start; None: here.
    """

    corpus: Corpus
    output: str
    folder: str | None = None

    def run(self) -> bool:
        """Trains unless `output` is there already; then True.

        Raises:
          ValueError: settings that cannot be, a source without text, or `output` of other settings.
        """
        tokenizer: Tokenizer = self.corpus.tokenizer
        if tokenizer.path is not None:
            raise ValueError(f"Tokenizer.path is {tokenizer.path!r}, so there is nothing to train; set it to None")
        if os.path.abspath(self.output) == os.path.abspath(self.corpus.directory):
            raise ValueError(f"TrainTokenizer.output and Corpus.directory are both {self.output!r}; they must differ")
        tokenizer.check()
        corpus = dataclasses.replace(self.corpus, sources={n: self._place(s) for n, s in self.corpus.sources.items()})
        corpus.check()
        vocabulary = tokenizer.load(self.output, corpus.sample)
        _log.info("%s: %d entries, sha256 %s", vocabulary.path, vocabulary.size, vocabulary.fingerprint)
        return True

    def _place(self, source: str) -> str:
        scheme, colon, path = source.partition(":")
        if self.folder is None or scheme not in ("jsonl", "parquet", "text", "files"):
            return source
        return scheme + colon + os.path.join(self.folder, path)
