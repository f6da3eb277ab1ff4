"""What the model writes at points of a run, kept as text files and shown."""

import dataclasses
import logging
from pathlib import Path

import jax

from hcxjax.evaluation.answers import Writes
from hcxjax.evaluation.probes import VocabularyOwner
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Request
from hcxjax.inference.sampling import Sampling
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.protocols import Params
from hcxjax.text.infilling import Sentinels, infilling_prompt
from hcxjax.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Where a text begins, and with `suffix` also where it goes on after a gap that the model fills."""

    text: str
    suffix: str | None = None

    def tokens(self, vocabulary: Vocabulary, begin: tuple[int, ...] | None = None) -> list[int]:
        """What the model is given.

        Args:
          begin: ids that stand before every text; None is the end-of-text token, as in our documents.
        Raises:
          ValueError: a suffix and a vocabulary without the three sentinels; without `begin` also one without an end of
            text.
        """
        begin = (vocabulary.end_of_text,) if begin is None else begin
        prefix = vocabulary.encode(self.text)
        if self.suffix is None:
            return [*begin, *prefix]
        sentinels = Sentinels(vocabulary.fim_prefix, vocabulary.fim_middle, vocabulary.fim_suffix)
        return [*begin, *infilling_prompt(prefix, vocabulary.encode(self.suffix), sentinels)]

    def shown(self, written: str) -> str:
        """Prompt and continuation, the model's part between ⟦ and ⟧."""
        return f"{self.text}⟦{written}⟧{self.suffix or ''}"


@dataclasses.dataclass
class Samples:
    """Writes `samples/STEP.txt` in the run's folder and shows it.

    Attributes:
      model: the decoder's sizes.
      corpus: gives the vocabulary.
      prompts: what is continued or filled in.
      every: updates between samples.
      new_tokens: of each.
      sampling: how tokens are drawn.
      objective: finds the decoder's parameters among those that it trains; None: they are all.
    """

    model: DecoderConfig
    corpus: VocabularyOwner
    prompts: tuple[Prompt, ...]
    every: int
    new_tokens: int = 96
    sampling: Sampling = Sampling(temperature=0.7)
    objective: Writes | None = None

    def start(self, layout: Layout, run_dir: str) -> None:
        """Tokenises the prompts."""
        self._folder = Path(run_dir) / "samples"
        self._vocabulary = self.corpus.vocabulary()
        self._tokens = [prompt.tokens(self._vocabulary) for prompt in self.prompts]

    def evaluate(self, params: Params, step: int) -> dict[str, float]:
        """No number: a file."""
        stop = (self._vocabulary.end_of_text,)
        requests = [
            Request(tokens, self.new_tokens, self.sampling, stop, stream=number)
            for number, tokens in enumerate(self._tokens)
        ]
        context = min(self.model.max_length, max(map(len, self._tokens)) + self.new_tokens)
        settings = EngineSettings(slots=len(requests), context=context, chunk=64, prefix_tokens=0)
        policy = params if self.objective is None else self.objective.policy(params)
        written = Engine(self.model, policy, self._vocabulary, settings).complete(requests)
        pairs = zip(self.prompts, written, strict=True)
        text = "\n\n".join(prompt.shown(sample.text) for prompt, (sample,) in pairs)
        if jax.process_index() == 0:
            self._folder.mkdir(exist_ok=True, parents=True)
            (self._folder / f"{step:08d}.txt").write_text(text + "\n")
            _log.info("samples at step %d (what the model wrote stands between ⟦ and ⟧):\n\n%s\n", step, text)
        return {}
