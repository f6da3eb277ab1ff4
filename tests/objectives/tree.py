"""A language small enough to enumerate, whose best policy is known: four tokens, answers of at most four.

Token 0 stops. That leaves 40 prefixes after which a token is drawn, and 121 answers. With a reward r and a KL
coefficient β the policy that maximises J(π) = E[r(y)] − β KL(π ‖ π_ref) is π*(y) = π_ref(y) e^(r(y)/β) / Z, and
J(π*) = β log Z.

A policy enters as the log-probabilities of the tokens of all answers, `logprob_BT`, in the order of ANSWERS: looked up
in a table, or scored by a model.
"""

import dataclasses
import functools
import itertools

import numpy as np

STOP, VOCABULARY, LENGTH = 0, 4, 4

PREFIXES = [prefix for length in range(LENGTH) for prefix in itertools.product(range(1, VOCABULARY), repeat=length)]
ANSWERS = [(*prefix, STOP) for prefix in PREFIXES] + list(itertools.product(range(1, VOCABULARY), repeat=LENGTH))

TOKENS_BT = np.array([answer + (STOP,) * (LENGTH - len(answer)) for answer in ANSWERS], np.int32)
"""Every answer, padded with stop tokens."""

MASK_BT = np.array([[t < len(answer) for t in range(LENGTH)] for answer in ANSWERS])
"""Which of those tokens belong to the answer."""

PREFIX_BT = np.array([[PREFIXES.index(a[:t]) if t < len(a) else 0 for t in range(LENGTH)] for a in ANSWERS], np.int32)
"""The number of the prefix that each token follows; 0 beyond the answer."""


def number(continuation: tuple[int, ...]) -> int:
    """Which of ANSWERS it is; what follows the first stop token does not count."""
    stop = continuation.index(STOP) + 1 if STOP in continuation else LENGTH
    return ANSWERS.index(continuation[:stop])


def table_logprobs(logits_PV: np.ndarray) -> np.ndarray:
    """logprob_BT of a policy that is a table of logits, a row a prefix."""
    logits_PV = np.asarray(logits_PV, np.float64)
    logprob_PV = logits_PV - np.logaddexp.reduce(logits_PV, axis=1, keepdims=True)
    return logprob_PV[PREFIX_BT, TOKENS_BT]


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """Logits of the reference policy and rewards of the answers, all drawn from N(0, 1).

    Attributes:
      seed: of the draws.
      beta: the KL coefficient, in units of reward a nat.
    """

    seed: int
    beta: float = 0.3

    @functools.cached_property
    def reference_PV(self) -> np.ndarray:
        """The reference's logits after each prefix, float32."""
        return np.random.default_rng((self.seed, 0)).normal(size=(len(PREFIXES), VOCABULARY)).astype(np.float32)

    @functools.cached_property
    def reward_B(self) -> np.ndarray:
        """The reward of every answer, float32."""
        return np.random.default_rng((self.seed, 1)).normal(size=len(ANSWERS)).astype(np.float32)

    @functools.cached_property
    def reference_B(self) -> np.ndarray:
        """log π_ref(y) of every answer."""
        return _answer_logprobs(table_logprobs(self.reference_PV))

    @functools.cached_property
    def best_B(self) -> np.ndarray:
        """log π*(y) of every answer."""
        return self.reference_B + self.reward_B / self.beta - self.best_objective / self.beta

    @functools.cached_property
    def best_objective(self) -> float:
        """J(π*)."""
        return self.beta * float(np.logaddexp.reduce(self.reference_B + self.reward_B / self.beta))

    def objective(self, logprob_BT: np.ndarray) -> float:
        """J of a policy, by enumeration."""
        logprob_B = _answer_logprobs(logprob_BT)
        return float(np.sum(np.exp(logprob_B) * (self.reward_B - self.beta * (logprob_B - self.reference_B))))

    def frac(self, logprob_BT: np.ndarray) -> float:
        """(J − J_ref) / (J* − J_ref): 0 for the reference, 1 for the best policy, below 0 where it got worse."""
        start = float(np.sum(np.exp(self.reference_B) * self.reward_B))
        return (self.objective(logprob_BT) - start) / (self.best_objective - start)

    def total_variation(self, logprob_BT: np.ndarray) -> float:
        """½ Σ_y |π(y) − π*(y)|, in [0, 1]."""
        return float(np.abs(np.exp(_answer_logprobs(logprob_BT)) - np.exp(self.best_B)).sum() / 2)


def _answer_logprobs(logprob_BT: np.ndarray) -> np.ndarray:
    return np.where(MASK_BT, np.asarray(logprob_BT, np.float64), 0).sum(1)
