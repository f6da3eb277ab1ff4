"""Parameters in two parts by path: those that train, and those that stay as they were read."""

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hcxjax.protocols import Array, Params

_WORD = (1 << 32) - 1


def split(params: Params, prefixes: Collection[str] | None) -> tuple[Params, Params]:
    """(trained, frozen): the leaves below any of the prefixes, and the others, each at its own path.

    Args:
      params: nested dicts; leaves may be boxed or abstract.
      prefixes: of paths, whose steps are joined by '/'; None trains all.
    Raises:
      ValueError: a prefix names no parameter.
    """
    if prefixes is None:
        return params, {}
    for prefix in prefixes:
        node = params
        for step in prefix.split("/"):
            if not isinstance(node, Mapping) or step not in node:
                raise ValueError(
                    f"Experiment.trainable names {prefix!r}, but the parameters are {', '.join(sorted(params))}"
                )
            node = node[step]
    return _split(params, prefixes, "")


def _split(tree: Mapping[str, Any], prefixes: Collection[str], above: str) -> tuple[dict, dict]:
    trained, frozen = {}, {}
    for name, child in tree.items():
        path = f"{above}{name}"
        if any(covers(prefix, path) for prefix in prefixes):
            trained[name] = child
        elif isinstance(child, Mapping):
            below = _split(child, prefixes, f"{path}/")
            trained |= {name: below[0]} if below[0] else {}
            frozen |= {name: below[1]} if below[1] else {}
        else:
            frozen[name] = child
    return trained, frozen


def joined(trained: Params, frozen: Params) -> Params:
    """The tree that `split` divided; no leaf is copied."""
    if not frozen:
        return trained
    both = {name: joined(trained[name], frozen[name]) for name in trained.keys() & frozen.keys()}
    return {**trained, **frozen, **both}


def covers(prefix: str, name: str) -> bool:
    """Does a path lie below a prefix, whole steps compared? '' covers all."""
    return not prefix or name == prefix or name.startswith(prefix + "/")


def checked_prefixes(field: str, given: Collection[str]) -> tuple[str, ...]:
    """Prefixes without slashes around them.

    Raises:
      ValueError: they are no tuple of names; `field` is where they were given.
    """
    if isinstance(given, str) or not all(isinstance(prefix, str) and prefix.strip("/") for prefix in given):
        raise ValueError(f"{field} is {given!r}; it must be a tuple of prefixes of paths, such as ('head',)")
    return tuple(prefix.strip("/") for prefix in given)


def by_path(tree: Params) -> dict[str, Any]:
    """Leaves by their paths, whose steps are joined by '/'."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def nested(flat: Mapping[str, object]) -> dict:
    """The nested dicts of {path: leaf}."""
    tree: dict = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def fingerprint(params: Params) -> int:
    """32 bits that stand for all values of all leaves, on whatever mesh: the sum of `part_fingerprint` over them."""
    return sum(part_fingerprint(name, leaf) for name, leaf in by_path(params).items()) & _WORD


def part_fingerprint(name: str, values: Array | np.ndarray, start: int = 0) -> int:
    """What a leaf, or the rows of it from `start` on, adds to the fingerprint; sums are taken modulo 2^32.

    Every value is hashed with its place and the leaf's path, and the hashes are added, so that parts, devices and
    processes may add theirs in any order. Source of the hash: Appleby 2011, MurmurHash3, `fmix32`.

    Args:
      name: the leaf's path.
    """
    return int(_hashed(values, np.uint32(zlib.crc32(name.encode())), np.uint32(start & _WORD)))


@jax.jit
def _hashed(values: Array, salt: Array, start: Array) -> Array:
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = jax.lax.bitcast_convert_type(values, jnp.dtype(f"uint{8 * values.dtype.itemsize}"))
    place = jnp.zeros(values.shape, jnp.uint32)
    for axis, size in enumerate(values.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, values.shape, axis)
        place = place * np.uint32(size & _WORD) + along + (start if axis == 0 else np.uint32(0))
    return jnp.sum(_mixed(values.astype(jnp.uint32) ^ _mixed(place ^ salt)), dtype=jnp.uint32)


def _mixed(word: Array) -> Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return word
