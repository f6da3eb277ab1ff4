import dataclasses

import pytest

from hcxjax.planning.flops import TILE, attention_share, block_weights, hardware_flops_per_token


def test_weights_are_those_of_the_model_without_tables_and_norms(billion):
    tables = billion.vocab_size * billion.embed_dim
    norms = (2 * billion.num_layers + 1) * billion.embed_dim
    assert block_weights(billion) == billion.parameters - tables - norms


def test_the_share_of_scores():
    assert attention_share(TILE) == attention_share(100) == 1
    assert attention_share(4096) == pytest.approx(0.5625)
    assert attention_share(1 << 20) == pytest.approx(0.5, rel=1e-3)


def test_what_is_computed_again(billion):
    """Against the sums that the docstring gives, spelled out."""

    def flops(**changes):
        return hardware_flops_per_token(dataclasses.replace(billion, **changes), 4096)

    w, v = 2 * block_weights(billion), 2 * 100352 * 2048
    a, d = 4 * 18 * 16 * 128 * 4096 * 0.5625, 2 * 18 * 5632 * 2048
    assert flops(remat="none") == flops(remat="dots") == pytest.approx(3 * w + 4.5 * a + 4 * v)
    assert flops(remat="attention") - flops(remat="none") == pytest.approx(w - d)
    assert flops(remat="full") - flops(remat="attention") == pytest.approx(a)
    assert flops(remat="full", post_norms=True) - flops(remat="full") == pytest.approx(d)
    assert flops(remat="full") - flops(remat=("gate", "up")) == pytest.approx(2 * d)
    assert flops(remat=("gate", "up")) == flops(remat=("gate",), offload=("up",))


def test_the_chips_run_more_than_the_model_counts(billion):
    for remat in ("none", "dots", "attention", "full"):
        model = dataclasses.replace(billion, remat=remat)
        assert 1.0 < hardware_flops_per_token(model, 4096) / model.flops_per_token(4096) < 1.7
