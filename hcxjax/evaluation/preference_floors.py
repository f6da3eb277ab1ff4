"""What needs no understanding to tell the preferred answer: lengths, and bags of bigrams."""

from collections.abc import Iterable, Sequence

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""Token ids of two answers: the chosen one and the rejected."""
_WIDTH = 1 << 16
_STEPS = 300


def preferred(difference: np.ndarray) -> np.ndarray:
    """1 where the chosen answer is put first, 0 where the rejected one is, ½ where neither is."""
    return (np.sign(difference) + 1) / 2


def lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """Tokens of both answers, [pairs, 2]."""
    return np.array([[len(chosen), len(rejected)] for chosen, rejected in pairs])


class Bigrams:
    """Bradley-Terry over bags of token bigrams: log p(chosen first) = log σ(w · x).

    x is the difference between the bigram counts of the two answers, scaled to length 1, so that swapping the answers
    turns its sign and nothing else. w minimises Σ −log p + ½ |w|².

    Args:
      pairs: what it learns from. ValueError where there is none.
    """

    def __init__(self, pairs: Iterable[Pair]):
        rows, columns, values = _differences(pairs)
        count = int(rows.max()) + 1 if len(rows) else 0
        if not count:
            raise ValueError("no comparison whose answers differ in their bigrams: nothing to learn from")
        weights = ahead = np.zeros(_WIDTH)
        # Nesterov's steps: rows have length 1, so the slope of the mean loss changes by at most 1/4 + 1/count.
        step, momentum = 1 / (0.25 + 1 / count), 1.0
        for _ in range(_STEPS):
            wrong = 1 / (1 + np.exp(np.bincount(rows, values * ahead[columns], count)))
            slope = ahead / count - np.bincount(columns, values * wrong[rows], _WIDTH) / count
            before, weights = weights, ahead - step * slope
            after = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = weights + (momentum - 1) / after * (weights - before)
            momentum = after
        self._weights = weights

    def differences(self, pairs: Sequence[Pair]) -> np.ndarray:
        """w · x of each pair: above 0 where the chosen answer is put first."""
        rows, columns, values = _differences(pairs)
        return np.bincount(rows, values * self._weights[columns], len(pairs))


def _differences(pairs: Iterable[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, values) of the sparse matrix of x."""
    rows, columns, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for number, (chosen, rejected) in enumerate(pairs):
        codes = np.concatenate([_codes(chosen), _codes(rejected)])
        signs = np.repeat([1.0, -1.0], [len(_codes(chosen)), len(_codes(rejected))])
        found, place = np.unique(codes, return_inverse=True)
        difference = np.bincount(place, signs, len(found))
        kept = np.flatnonzero(difference)
        rows.append(np.full(len(kept), number))
        columns.append(found[kept])
        values.append(difference[kept] / max(1e-9, float(np.linalg.norm(difference))))
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def _codes(tokens: np.ndarray) -> np.ndarray:
    """A number below `_WIDTH` for each bigram; some share one."""
    tokens = np.asarray(tokens, np.int64)
    return (tokens[:-1] * 1_000_003 + tokens[1:]) % 2_147_483_647 % _WIDTH
