"""Weights in less memory, for serving: in the compute dtype, or as int8 with a scale for each output."""

import dataclasses

import jax
import jax.numpy as jnp

from hcxjax.models.config import MATRICES
from hcxjax.protocols import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A weight whose entries are `values * scale`.

    Attributes:
      values: int8, in the weight's shape.
      scale: float32, 1 along the dimensions that share a scale.
    """

    values: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Of values and scales."""
        return self.values.nbytes + self.scale.nbytes


def rows_of(table_VD: Array | Int8Weight, tokens_BT: Array, dtype: str) -> Array:
    """x_BTD, the table's rows by id, in `dtype`."""
    if isinstance(table_VD, Int8Weight):
        x_BTD = table_VD.values[tokens_BT].astype(jnp.float32) * table_VD.scale[tokens_BT]
        return x_BTD.astype(dtype)
    return table_VD[tokens_BT].astype(dtype)


def in_dtype(params: Params, dtype: str) -> Params:
    """A decoder's parameters with all matrices in `dtype`, as matmuls round them anyway; norms stay float32."""

    def leaf(path: tuple, weight: Array) -> Array:
        kept = weight.dtype == jnp.dtype(dtype) or "norm" in jax.tree_util.keystr(path)
        return weight if kept else weight.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


@jax.jit
def quantized(params: Params) -> Params:
    """A decoder's parameters with all matrices as `Int8Weight`; norms stay as they are.

    Symmetric rounding to the nearest of 255 values, the largest of each output's weights at 127 (Dettmers et al. 2022,
    arXiv:2208.07339, section 2, row-wise, without their outlier decomposition: activations are not quantised here).
    """

    def leaf(path: tuple, weight: Array) -> Array | Int8Weight:
        names = [key.key for key in path]
        if names[0] in ("embed", "head"):
            return _rounded(weight, (1,))
        if names[-2] in MATRICES:
            return _rounded(weight, tuple(range(1, 1 + MATRICES[names[-2]])))  # dimension 0 counts layers
        return weight

    return jax.tree_util.tree_map_with_path(leaf, params)


def _rounded(weight: Array, shared: tuple[int, ...]) -> Int8Weight:
    scale = jnp.max(jnp.abs(weight), axis=shared, keepdims=True) / 127
    values = jnp.round(weight / jnp.maximum(scale, 1e-30)).astype(jnp.int8)
    return Int8Weight(values, scale.astype(jnp.float32))
