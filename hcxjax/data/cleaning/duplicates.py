"""Duplicates and near-duplicates: keys and signatures of single documents, and the rule by which one of two goes."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from hcxjax.checks import whole
from hcxjax.data.cleaning.characters import code_points, folded
from hcxjax.data.cleaning.steps import share
from hcxjax.data.cleaning.windows import window_hashes

EXACT, NEAR = "exact duplicate", "near-duplicate"
_SEED = 1
_BLOCK = 256
"""Signatures compared with one at a time."""


def exact_key(text: str) -> int:
    """63 bits of the text in NFKC and lower case, white space collapsed.

    NFKC because Hangul from a Mac is decomposed and copies from old pages have full-width digits; lower case and white
    space because re-wrapped and re-typed copies are copies. Punctuation stays: that is the near-duplicates' business.
    """
    plain = " ".join(folded(text).split())
    return int.from_bytes(hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """MinHash over windows of characters, and the bands by which alike documents meet.

    Source: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec et al., Mining of Massive
    Datasets, section 3.4; Lee et al. 2022, arXiv:2107.06499, section 4.2, with Jaccard 0.8 as here. Characters and not
    words, white space left out, because Korean spacing varies from writer to writer (할수있다, 할 수 있다) and would
    change every word n-gram around it.

    The library is rensa (MIT, Rust): 10 ns a window at 120 permutations where datasketch takes 10 µs, unbiased like
    it (see docs/benchmarks.md). Windows are hashed here, so Python's hash seed plays no part.

    Attributes:
      threshold: estimated Jaccard similarity from which two documents are alike.
      permutations: length of a signature; the estimate's standard deviation at 0.8 is sqrt(0.16 / permutations).
      shingle: characters of a window. Short windows make long texts on one topic alike, long ones miss small edits.
      bands: documents that are equal in one of them are compared: 20 bands of 6 find 99.8 % of the pairs at 0.8.
      least: windows; shorter documents have no signature and can be exact duplicates only.
    """

    threshold: float = 0.8
    permutations: int = 120
    shingle: int = 8
    bands: int = 20
    least: int = 20

    def __post_init__(self):
        share(self, "threshold")
        whole(self, 1, "permutations", "shingle", "bands", "least")
        if self.permutations % self.bands:
            raise ValueError(
                f"NearDuplicates.permutations is {self.permutations}; it must be a multiple of bands, {self.bands}"
            )

    def signature(self, text: str) -> np.ndarray:
        """uint32 [permutations]; [0] where the text is too short."""
        hashes = window_hashes(code_points("".join(folded(text).split())), self.shingle)
        if len(hashes) < self.least:
            return np.zeros(0, np.uint32)
        from rensa import RMinHash  # type: ignore[attr-defined]

        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], self.permutations, _SEED)
        return np.asarray(rows.to_rows()[0], np.uint32)

    def bands_of(self, signature: np.ndarray) -> list[int]:
        """One 64-bit key a band; two documents with a key in common are to be compared. None for too short a text."""
        return self._band_keys(signature[None])[0].tolist() if len(signature) else []

    def alike(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the estimated similarity reaches the threshold."""
        return bool(len(a) and len(b) and self._agreeing(b[None], a)[0])

    def _agreeing(self, signatures: np.ndarray, one: np.ndarray) -> np.ndarray:
        # Counts, because 0.8 * 120 is exact where a mean of 96 ones need not be.
        return np.count_nonzero(signatures == one, axis=-1) >= self.threshold * self.permutations

    def _band_keys(self, signatures: np.ndarray) -> np.ndarray:
        """uint64 [documents, bands]; the band's number is part of its key."""
        rows = self.permutations // self.bands
        keys = np.empty((len(signatures), self.bands), np.uint64)
        for band in range(self.bands):
            piece = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
            numbered = np.concatenate([np.full((len(piece), 1), band, np.uint64), piece], axis=1)
            keys[:, band] = window_hashes(numbered.reshape(-1), rows + 1)[:: rows + 1]
        return keys


def duplicates(
    ids: Sequence[int] | np.ndarray,
    exact_keys: Sequence[int] | np.ndarray,
    signatures: Sequence[np.ndarray] | np.ndarray,
    near: NearDuplicates,
) -> dict[int, tuple[str, int]]:
    """Which documents go, why, and the smallest id that each matches.

    A document goes when one of a smaller id matches it, whether that one goes itself or not: no closure over chains, so
    that the answer is the union of what any bucket of documents with a key in common says, in any order, on any number
    of machines. An exact match is reported before a near one.

    Args:
      ids: of the documents, all different, in any order.
      exact_keys: of `exact_key`.
      signatures: of `near.signature`; empty ones match nothing. One array, where none is empty, is not copied.
    """
    ids, keys = np.asarray(ids, np.int64), np.asarray(exact_keys, np.int64)
    if len(np.unique(ids)) != len(ids) or not len(ids) == len(keys) == len(signatures):
        raise ValueError(
            f"{len(ids)} ids, {len(keys)} keys, {len(signatures)} signatures: one of each a document, ids different"
        )
    matches = _near_matches(ids, signatures, near)
    found = {own: (NEAR, smaller) for own, smaller in matches.items()}
    order = np.lexsort((ids, keys))
    for group in _equal_runs(keys[order]):
        first, *rest = ids[order[group]].tolist()
        found |= dict.fromkeys(rest, (EXACT, first))
    return found


def _near_matches(
    ids: np.ndarray, signatures: Sequence[np.ndarray] | np.ndarray, near: NearDuplicates
) -> dict[int, int]:
    """Id → the smallest id that is alike and shares a band."""
    long = np.asarray([len(signature) > 0 for signature in signatures], bool)
    if not long.any():
        return {}
    everything = isinstance(signatures, np.ndarray) and bool(long.all())
    matrix = np.asarray(signatures) if everything else np.stack([one for one in signatures if len(one)])
    ids = ids[long]
    # Equal signatures are one: templates and mirrors come by thousands, and their pairs by millions.
    distinct, member = np.unique(matrix, axis=0, return_inverse=True)
    member = member.reshape(-1)
    least = np.full(len(distinct), np.iinfo(np.int64).max)
    np.minimum.at(least, member, ids)
    smallest = least.copy()
    keys = near._band_keys(distinct)
    for band in range(near.bands):
        order = np.lexsort((least, keys[:, band]))
        for run in _equal_runs(keys[order, band]):
            _match(order[run], distinct, least, smallest, near)
    matched = smallest[member]
    gone = np.flatnonzero(matched < ids)
    return dict(zip(ids[gone].tolist(), matched[gone].tolist(), strict=True))


def _match(
    bucket: np.ndarray, distinct: np.ndarray, least: np.ndarray, smallest: np.ndarray, near: NearDuplicates
) -> None:
    """Lowers `smallest` of each signature of a bucket, which is in the order of `least`, to the first that is alike.

    A later member of a signature has that signature's own least id as a match, so one number for all members is enough.
    """
    for position in range(1, len(bucket)):
        own = bucket[position]
        for start in range(0, position, _BLOCK):
            earlier = bucket[start : min(start + _BLOCK, position)]
            if least[earlier[0]] >= smallest[own]:
                break
            alike = near._agreeing(distinct[earlier], distinct[own])
            if alike.any():
                smallest[own] = min(smallest[own], least[earlier[int(np.argmax(alike))]])
                break


def _equal_runs(values: np.ndarray) -> Iterator[slice]:
    """Slices of two and more equal values of a sorted array."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
    lengths = np.diff(np.append(starts, len(values)))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        yield slice(start, start + length)
