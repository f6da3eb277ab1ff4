"""The device mesh, the one table from logical to mesh axes, and how parameters and batches are laid out on it."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.linen import spmd
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hcxjax.placement import arranged
from hcxjax.protocols import Batch, PyTree

AXES = ("pipe", "data", "fsdp", "context", "tensor")
"""Outermost first: neighbours along the last axes are nearest, and they talk most."""

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    ("vocab", ("tensor", "pipe")),
    ("embed", ("fsdp", "context")),
    ("activation_embed", None),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("layers", "pipe"),
)
"""Logical axis of a parameter or activation → mesh axes; the first rule whose mesh axes are free applies."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh by name and size, and where each logical axis goes.

    Attributes:
      data, fsdp, tensor, context, pipe: sizes of the mesh axes; one of them may be -1, which takes all devices that are
        left. Rows are divided over data and fsdp, parameters over fsdp and context, heads and feed-forward over tensor,
        the places of a row over context, layers over pipe.
      rules: overrides, put before `RULES`.
      devices: (first, last + 1) of jax's devices, for a mesh over some of them; None takes all.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    pipe: int = 1
    rules: tuple[tuple[str, str | tuple[str, ...] | None], ...] = ()
    devices: tuple[int, int] | None = None

    @property
    def chosen(self) -> list[Any]:
        """The devices of the mesh."""
        present = jax.devices()
        first, end = (0, len(present)) if self.devices is None else self.devices
        if not 0 <= first < end <= len(present):
            raise ValueError(
                f"Layout.devices is {self.devices}; it must be (first, last + 1) within the {len(present)} devices "
                "that are present"
            )
        return present[first:end]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`, -1 resolved."""
        sizes, devices = [getattr(self, axis) for axis in AXES], len(self.chosen)
        for axis, size in zip(AXES, sizes, strict=True):
            if size == 0 or size < -1:
                raise ValueError(
                    f"Layout.{axis} is {size}; it must be a positive number of devices, or -1 for the rest"
                )
        if sizes.count(-1) > 1:
            raise ValueError(f"Layout {dict(zip(AXES, sizes, strict=True))}: at most one axis may be -1")
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = max(1, devices // known)
        if math.prod(sizes) != devices:
            described = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
            raise ValueError(f"Layout {described} is {math.prod(sizes)} devices, but {devices} are present")
        return tuple(sizes)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The jax mesh; Auto axes, because Linen's partitioned initialisers need them."""
        sizes: dict[str, int] = dict(zip(AXES, self.shape, strict=True))
        return jax.sharding.Mesh(arranged(sizes, self.chosen), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    @contextmanager
    def active(self) -> Iterator[jax.sharding.Mesh]:
        """Makes `constrain` and boxed initialisers see this mesh and these rules."""
        mesh = self.mesh
        with jax.set_mesh(mesh), nn.logical_axis_rules(self.rules + RULES):
            yield mesh

    def sharding(self, *logical: str | None) -> NamedSharding:
        """The sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, spmd.logical_to_mesh_axes(logical, self.rules + RULES) or PartitionSpec())

    @property
    def batch_shards(self) -> int:
        """Number of parts that the rows of a batch are divided into."""
        axes = self.sharding("batch").spec[0] or ()
        sizes: dict[str, int] = dict(zip(AXES, self.shape, strict=True))
        return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes))

    def check_batch(self, batch: int, accumulate: int = 1) -> None:
        """ValueError unless `batch` rows divide evenly over microbatches and devices."""
        parts = self.batch_shards * accumulate
        if batch < 1 or batch % parts:
            raise ValueError(
                f"BATCH is {batch}; it must be a positive multiple of {parts} "
                f"(microbatches {accumulate} x mesh shards of the batch {self.batch_shards})"
            )

    def param_shardings(self, boxed: PyTree) -> PyTree:
        """Shardings of a tree of boxed (abstract) parameters; unboxed leaves are replicated."""
        mesh, specs = self.mesh, nn.get_partition_spec(boxed)
        shardings = spmd.logical_to_mesh_sharding(specs, mesh, self.rules + RULES)
        return jax.tree.map(
            lambda leaf, sharding: NamedSharding(mesh, _dividing(sharding.spec, leaf.shape, mesh.shape)),
            unbox(boxed),
            shardings,
        )

    def undivided(self, boxed: PyTree) -> list["Undivided"]:
        """Dimensions of boxed parameters that the rules divide over mesh axes which do not divide them."""
        sizes, found = self.mesh.shape, []
        specs = nn.get_partition_spec(boxed)
        shardings = spmd.logical_to_mesh_sharding(specs, self.mesh, self.rules + RULES)
        leaves = zip(jax.tree_util.tree_leaves_with_path(unbox(boxed)), jax.tree.leaves(shardings), strict=True)
        logical = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
        for ((path, leaf), sharding), names in zip(leaves, logical, strict=True):
            divided = _dividing(sharding.spec, leaf.shape, sizes)
            for name, wanted, got, size in zip(names, sharding.spec, divided, leaf.shape, strict=False):
                missing = tuple(axis for axis in _names(wanted) if sizes[axis] > 1 and axis not in _names(got))
                if missing:
                    where = jax.tree_util.keystr(path, simple=True, separator="/")
                    held = math.prod(NamedSharding(self.mesh, divided).shard_shape(leaf.shape)) * leaf.dtype.itemsize
                    found.append(Undivided(where, name, size, missing, math.prod(sizes[a] for a in missing), held))
        return found

    def abstract_batch(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """What `shard_batch` gives for rows of these shapes, without an array."""
        sharding = self.sharding("batch")
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for name, leaf in shapes.items()}

    def shard_batch(self, rows: Callable[[int, int], Mapping[str, np.ndarray]], batch: int) -> Batch:
        """Global arrays of `batch` rows of which each process builds only those its devices hold.

        Args:
          rows: (start, stop) → arrays of rows start..stop-1, the same on every process.
          batch: rows of the global batch.
        """
        sharding = self.sharding("batch")
        built: dict[tuple[int, int], Mapping[str, np.ndarray]] = {}

        def span(index: tuple[slice, ...] | None) -> tuple[int, int]:
            assert index is not None
            start, stop, _ = index[0].indices(batch)
            return start, stop

        for part in map(span, sharding.addressable_devices_indices_map((batch,)).values()):
            if part not in built:
                built[part] = rows(*part)
        sample = next(iter(built.values()))
        return {
            name: jax.make_array_from_callback(
                (batch, *value.shape[1:]), sharding, lambda index, name=name: built[span(index)][name]
            )
            for name, value in sample.items()
        }


class Undivided(NamedTuple):
    """A dimension that every device of some mesh axes holds whole.

    Attributes:
      path, logical: of the parameter, and of the dimension.
      size: of what is not divided.
      axes, parts: mesh axes, and the number of devices along them.
      bytes: of the parameter on each device.
    """

    path: str
    logical: str
    size: int
    axes: tuple[str, ...]
    parts: int
    bytes: int

    def __str__(self) -> str:
        axes = " x ".join(f"Layout.{axis}" for axis in self.axes)
        return f"{self.logical!r} of {self.path} is {self.size}, which {axes} = {self.parts} does not divide"


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation to the mesh axes of its logical ones; the identity where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(x.shape, *logical))


def spec_of(shape: tuple[int, ...], *logical: str | None) -> PartitionSpec:
    """The mesh axes of an array with these logical ones, on the mesh that is set.

    Inside a shard_map, of what one device holds: axes that it has taken divide nothing any more.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}
    return _dividing(spmd.logical_to_mesh_axes(logical, nn.get_logical_axis_rules()) or PartitionSpec(), shape, sizes)


def axes_of(logical: str) -> tuple[str, ...]:
    """The mesh axes of more than one device that a logical axis may be divided over, on the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    (axes,) = spmd.logical_to_mesh_axes((logical,), nn.get_logical_axis_rules()) or (None,)
    return tuple(axis for axis in _names(axes) if mesh.shape[axis] > 1)


def _dividing(spec: PartitionSpec, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """`spec` without mesh axes of one device; of several for a dimension, as many from the first as divide it.

    Over the others it is replicated: KV heads fewer than the tensor axis are held by each of its devices.
    """

    def kept(axes: str | tuple[str, ...] | None, size: int) -> str | tuple[str, ...] | None:
        names = tuple(name for name in _names(axes) if sizes[name] > 1)
        while size % math.prod(sizes[name] for name in names):
            names = names[:-1]
        return names[0] if len(names) == 1 else names or None

    return PartitionSpec(*(kept(axes, size) for axes, size in zip(spec, shape, strict=False)))


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def unbox(boxed: PyTree) -> PyTree:
    """A tree without its logical axes; unlike flax's own, it takes abstract leaves under a mesh too."""

    def boxes(leaf: object) -> bool:
        return isinstance(leaf, nn.meta.AxisMetadata)

    return jax.tree.map(lambda leaf: leaf.value if boxes(leaf) else leaf, boxed, is_leaf=boxes)
