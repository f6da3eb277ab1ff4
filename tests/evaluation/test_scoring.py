"""Packed scoring gives every sequence the scores it has alone."""

import numpy as np
import pytest

from hcxjax.evaluation.scoring import pack_sequences


def test_every_sequence_lies_where_it_is_said_to():
    random = np.random.default_rng(0)
    sequences = [random.integers(1, 50, size).tolist() for size in (5, 9, 3, 12, 2, 7, 7)]
    batches, places = pack_sequences(sequences, length=12, batch=2)
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    for sequence, place in zip(sequences, places, strict=True):
        here = np.s_[place.row, place.start : place.stop]
        assert rows["tokens_BT"][here].tolist() == sequence[:-1]
        assert rows["targets_BT"][here].tolist() == sequence[1:]
        assert rows["positions_BT"][here].tolist() == list(range(len(sequence) - 1))
        assert len(set(rows["segment_ids_BT"][here].tolist())) == 1
        assert (rows["weights_BT"][here] == 1).all()
    assert rows["weights_BT"].sum() == sum(len(sequence) - 1 for sequence in sequences)
    assert all(len(batch["tokens_BT"]) == 2 for batch in batches)
    segments = {(place.row, int(rows["segment_ids_BT"][place.row, place.start])) for place in places}
    assert len(segments) == len(sequences), "no two sequences share a document"


def test_a_sequence_longer_than_a_row_is_named():
    with pytest.raises(ValueError, match="sequence 1 has 13 tokens to score; a row holds 12"):
        pack_sequences([[1, 2], list(range(14))], length=12, batch=1)
