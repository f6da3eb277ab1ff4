import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from hcxjax.kernels.target import Target
from hcxjax.models.decoder import Decoder
from hcxjax.models.low_precision import in_low_precision
from hcxjax.objectives.language_model import LanguageModel


def loss_of(config, params, batch):
    total, weight, _ = LanguageModel(config).loss(params, batch, jax.random.key(0))
    return total / weight


@pytest.fixture(scope="module")
def case(tiny, random_params, packed):
    return dataclasses.replace(tiny, remat="dots"), random_params(tiny), packed(4, 16, tiny.vocab_size)


@pytest.mark.parametrize(("matmuls", "near"), [("int8", 0.01), pytest.param("fp8", 0.03, marks=pytest.mark.slow)])
def test_loss_and_gradient_are_near_those_of_the_compute_dtype(case, matmuls, near):
    config, params, batch = case
    run = jax.jit(jax.value_and_grad(loss_of, argnums=1), static_argnums=0)
    exact, rounded = (run(dataclasses.replace(config, matmuls=name), params, batch) for name in ("dtype", matmuls))
    assert exact[0] != rounded[0]
    np.testing.assert_allclose(rounded[0], exact[0], rtol=near)
    for one, other in zip(jax.tree.leaves(exact[1]), jax.tree.leaves(rounded[1]), strict=True):
        cosine = np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
        assert cosine > 1 - 2 * near


def products(config, params, batch, platform):
    """Element types of both sides of every product of the forward and backward program."""
    gradient = jax.jit(jax.grad(functools.partial(loss_of, config)))
    text = jax.export.export(gradient, platforms=[platform])(params, batch).mlir_module()
    return re.findall(r"dot_general .*\(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)


def test_the_weight_matmuls_of_the_layers_and_no_others_are_in_eight_bits(case):
    config, params, batch = case
    int8 = products(dataclasses.replace(config, matmuls="int8"), params, batch, "tpu")
    assert int8.count(("i8", "i8")) == 7
    fp8 = products(dataclasses.replace(config, matmuls="fp8"), params, batch, "cuda")
    assert fp8.count(("f8E4M3FN", "f8E4M3FN")) == 7
    assert len([pair for pair in fp8 if "f8E5M2" in pair]) == 14
    assert len(int8) == len(products(config, params, batch, "tpu"))


def test_chips_without_such_units(case, monkeypatch):
    config = dataclasses.replace(case[0], matmuls="fp8")
    monkeypatch.setattr(Target, "now", classmethod(lambda cls: cls("tpu", "TPU v5 lite")))
    with pytest.raises(ValueError, match=r"DecoderConfig\.matmuls is 'fp8', and TPU v5 lite has no such units"):
        in_low_precision(Decoder, config)
