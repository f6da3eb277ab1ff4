import dataclasses
import math

import numpy as np
import pytest

from hcxjax.models.config import RopeScaling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"DecoderConfig\.vocab_size is 0; it must be a whole number of at least 1"),
        ({"num_layers": -1}, r"DecoderConfig\.num_layers is -1"),
        ({"num_kv_heads": 3}, r"DecoderConfig\.num_heads is 4; it must be a multiple of num_kv_heads, 3"),
        ({"head_dim": 15}, r"DecoderConfig\.head_dim is 15; rotary embedding needs an even number"),
        ({"dtype": "int8"}, r"DecoderConfig\.dtype is 'int8'; it must be float32, bfloat16 or float16"),
        (
            {"remat": "some"},
            r"DecoderConfig\.remat is 'some'; it must be none, full, dots, attention, or a tuple of query",
        ),
        ({"remat": ("query", "ups")}, r"DecoderConfig\.remat names \['ups'\]; there are query, key,"),
        ({"remat": "full", "offload": ("up",)}, r"offload is \('up',\) and remat 'full'; remat must be a tuple"),
        ({"remat": ("up",), "offload": ("up",)}, r"none of them in offload"),
        ({"context": "both"}, r"DecoderConfig\.context is 'both'"),
        ({"attention_tile": (128,)}, r"DecoderConfig\.attention_tile is \(128,\); it must be \(queries, keys\)"),
    ],
)
def test_mistakes_name_the_field(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **changes)


def test_mistakes_of_scaling_name_the_field():
    with pytest.raises(ValueError, match=r"RopeScaling\.kind is 'yarn'; it must be 'linear' or 'llama3'"):
        RopeScaling("yarn", 2.0)
    with pytest.raises(ValueError, match=r"RopeScaling\.factor is 0\.5; it must be at least 1"):
        RopeScaling("linear", 0.5)


def test_rotary_frequencies(tiny):
    plain = np.array([1000.0 ** (-i / 8) for i in range(8)])
    np.testing.assert_allclose(tiny.rotary_frequencies(), plain, rtol=1e-12)
    linear = dataclasses.replace(tiny, rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(linear.rotary_frequencies(), plain / 4, rtol=1e-12)


def test_llama3_keeps_short_waves_and_stretches_long_ones(tiny):
    scaling = RopeScaling("llama3", 8.0, low_frequency=1.0, high_frequency=4.0, original_length=64)
    plain = np.array(tiny.rotary_frequencies())
    ratio = np.array(dataclasses.replace(tiny, rope_scaling=scaling).rotary_frequencies()) / plain
    turns = 64 * plain / (2 * math.pi)
    assert np.all(ratio[turns >= 4] == 1)
    np.testing.assert_allclose(ratio[turns <= 1], 1 / 8)
    between = (turns > 1) & (turns < 4)
    assert min((turns >= 4).sum(), (turns <= 1).sum(), between.sum()) >= 1
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(ratio[between], share + (1 - share) / 8)


def test_attention_scale(tiny):
    assert tiny.attention_scale == 0.25
    assert dataclasses.replace(tiny, attention_multiplier=0.01).attention_scale == 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_flops_count_each_matmul_three_times(tiny, tied):
    """Multiply and add, forward and twice backward; attention over the half of the scores that is not masked."""
    config, length = dataclasses.replace(tiny, tie_embeddings=tied), 32
    layer = 32 * 16 * (4 + 2 + 2 + 4) + 3 * 32 * 40
    matmuls = 2 * layer + 61 * 32
    attention = 2 * 2 * (4 * 16) * (length / 2)
    norms = 5 * 32
    assert config.flops_per_token(length) == pytest.approx(6 * (matmuls + norms + attention))
