"""First parameters from checkpoints of other runs and of imported models.

Every leaf comes from somewhere or is named among those that start anew: a random layer that nobody noticed trains too,
only worse.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from hcxjax.checkpoint import CheckpointError, CheckpointFolder, KeepPolicy, read
from hcxjax.mesh import Layout, unbox
from hcxjax.partition import by_path, checked_prefixes, covers, fingerprint, nested
from hcxjax.protocols import Array, Params, PyTree

_log = logging.getLogger(__name__)

_STORED = "state/params/"
PARTIAL = "progress/frozen"
"""The leaf of a checkpoint that leaves parameters out: the fingerprint of those."""
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where parameters come from.

    Attributes:
      folder: a run's RUN_DIR, or a model folder that tools/import_hf.py wrote.
      step: which of its checkpoints; None is the newest.
    """

    folder: str
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """`FOLDER` or `FOLDER@STEP`; a folder whose own name ends in @ and a number is taken as it is."""
        found = re.fullmatch(r"(.+)@(\d+)", text)
        if found is None or Path(text).is_dir():
            return cls(text)
        return cls(found[1], int(found[2]))

    @property
    def checkpoints(self) -> Path:
        """The folder's checkpoints."""
        return Path(self.folder) / "checkpoints"

    def stored(self) -> tuple[int, dict[str, jax.ShapeDtypeStruct]]:
        """(step, {path: shape and dtype}) of the parameters there.

        Raises:
          ValueError: no such checkpoint.
          CheckpointError: its index is damaged.
        """
        steps: list[int] = []
        if self.checkpoints.is_dir():
            there = CheckpointFolder(self.checkpoints, KeepPolicy(), read_only=True)
            steps = there.steps()
        if not steps or self.step not in (None, *steps):
            raise ValueError(
                f"{self.folder} has no checkpoint{'' if self.step is None else f' of step {self.step}'} to start from; "
                f"it has steps {steps}. Experiment.init_from (INIT_FROM) names the RUN_DIR of a run, or the folder of "
                "an imported model"
            )
        step = steps[-1] if self.step is None else self.step
        try:
            stored = by_path(there.stored(step))
        except Exception as error:  # of whatever kind a damaged index brings forth
            raise CheckpointError(f"checkpoint {step} of {self.folder} cannot be read: {error}") from error
        if PARTIAL in stored:
            raise ValueError(
                f"{self.folder} holds only what its run has trained, an adapter say, and none of what it was trained "
                f"on: make a whole model of it, python -m tools.merge_adapter {self.folder} FOLDER, and name FOLDER"
            )
        return step, {name.removeprefix(_STORED): leaf for name, leaf in stored.items() if name.startswith(_STORED)}


class Place(NamedTuple):
    """Where a leaf is.

    Attributes:
      prefix: that of `WarmStart.origins` which it goes by.
      step: of the checkpoint.
      path: of the leaf there.
    """

    prefix: str
    step: int
    path: str


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Which leaves of the parameters come from where.

    Attributes:
      origins: prefix of paths in this run's parameters → where they come from; '' is all of them, and of several
        prefixes the longest counts. What follows the prefix is the leaf's path there.
      fresh: prefixes of the paths of leaves that start anew.
    """

    origins: Mapping[str, Origin]
    fresh: tuple[str, ...] = ()

    @classmethod
    def parse(cls, init_from: str | Mapping[str, str], fresh: Collection[str] = ()) -> "WarmStart":
        """From the fields of an `Experiment`.

        Raises:
          ValueError: they are no names.
        """
        named = {"": init_from} if isinstance(init_from, str) else init_from
        if not isinstance(named, Mapping) or not named or not all(isinstance(t, str) and t for t in named.values()):
            raise ValueError(
                f"Experiment.init_from is {init_from!r}; it must name a folder (INIT_FROM), or a folder for each "
                "prefix of paths in the parameters. A model.gin that names one comes after the run: --gin_file=RUN "
                "--gin_file=FOLDER/model.gin"
            )
        checked = checked_prefixes("Experiment.fresh", fresh)
        return cls({prefix.strip("/"): Origin.parse(text) for prefix, text in named.items()}, checked)

    @property
    def folders(self) -> list[str]:
        """Every folder that is read."""
        return list(dict.fromkeys(origin.folder for origin in self.origins.values()))

    def places(self, params: Params) -> dict[str, Place]:
        """{path: where the leaf is} of all that does not start anew.

        Args:
          params: shapes and dtypes of this run's parameters.
        Raises:
          ValueError: a leaf is missing, has another shape or dtype, or is one too many; or a prefix names none.
          CheckpointError: a checkpoint's index is damaged.
        """
        wanted = by_path(params)
        self._check_prefixes(wanted)
        anew = {name for name in wanted if any(covers(prefix, name) for prefix in self.fresh)}
        found, problems = {prefix: origin.stored() for prefix, origin in self.origins.items()}, []
        for prefix, (step, stored) in found.items():
            place = f"checkpoint {step} of {self.origins[prefix].folder}"
            problems += self._problems(prefix, wanted, anew, stored, place)
        problems += [f"{name} comes from nowhere" for name in wanted if name not in anew and self._of(name) is None]
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ValueError(
                f"the run cannot start from the weights that Experiment.init_from (INIT_FROM) names: "
                f"{'; '.join(problems[:_SHOWN])}{more}. Give the run the sizes of those weights (VOCAB_SIZE, "
                "DecoderConfig.*; an imported model's are in its model.gin), or name the leaves that start anew in "
                "Experiment.fresh"
            )
        prefixes = {name: prefix for name in wanted if name not in anew and (prefix := self._of(name)) is not None}
        return {name: Place(at, found[at][0], _below(at, name)) for name, at in prefixes.items()}

    def read(self, params: Params, only: Collection[str] | None = None) -> dict[str, Array]:
        """{path: leaf} of all that does not start anew.

        Args:
          params: shapes, dtypes and shardings of this run's parameters; the leaves are read onto these.
          only: the paths of the leaves that are read; None reads all.
        Raises:
          ValueError: as `places`.
          CheckpointError: a checkpoint is damaged.
        """
        wanted, places, leaves = by_path(params), self.places(params), {}
        for prefix, origin in self.origins.items():
            mine = {name: place for name, place in places.items() if place.prefix == prefix}
            mine = {name: place for name, place in mine.items() if only is None or name in only}
            if not mine:
                continue
            template = nested({place.path: wanted[name] for name, place in mine.items()})
            step = next(iter(mine.values())).step
            _, tree = read(origin.checkpoints, {"state": {"params": template}}, step)
            leaves |= {name: _at(tree["state"]["params"], place.path) for name, place in mine.items()}
            _log.info("%d parameters start from step %d of %s", len(mine), step, origin.folder)
        if only is None and (anew := sorted(wanted.keys() - places.keys())):
            _log.info("these start anew: %s", ", ".join(anew))
        return leaves

    def check_frozen(self, frozen: Collection[str]) -> None:
        """ValueError where a leaf that does not train would start anew: nothing keeps it, and nothing could."""
        anew = sorted(name for name in frozen if any(covers(prefix, name) for prefix in self.fresh))
        if anew:
            raise ValueError(
                f"Experiment.fresh draws {', '.join(anew[:_SHOWN])}, which Experiment.trainable leaves as drawn; train "
                "it, or say in Experiment.init_from where it comes from"
            )

    def read_again(self, params: Params, frozen: Collection[str], known: int) -> Params:
        """The leaves that do not train, of a run that goes on: checkpoints leave them out.

        Args:
          params: as for `read`.
          frozen: their paths.
          known: their `fingerprint` when the run began.
        Raises:
          ValueError: they are gone, or other ones.
        """
        leaves = nested(self.read(params, frozen))
        self.check_known(fingerprint(leaves), known)
        return leaves

    def check_known(self, found: int, known: int) -> None:
        """ValueError unless the fingerprint of what is read now is the one of what was read when the run began."""
        if found != known:
            raise ValueError(
                f"the weights in {' and '.join(self.folders)} (Experiment.init_from, INIT_FROM) are not those that the "
                "run began with and whose changes its checkpoints hold. Put those back; where that folder's run has "
                "trained on since, name the checkpoint that was its newest then: FOLDER@STEP"
            )

    def _of(self, name: str) -> str | None:
        """The prefix that a leaf goes by."""
        covering = [prefix for prefix in self.origins if covers(prefix, name)]
        return max(covering, key=len, default=None)

    def _check_prefixes(self, wanted: Collection[str]) -> None:
        for field, prefixes in (("init_from", self.origins), ("fresh", self.fresh)):
            for prefix in prefixes:
                if not any(covers(prefix, name) for name in wanted):
                    tops = ", ".join(sorted({name.split("/")[0] for name in wanted}))
                    raise ValueError(f"Experiment.{field} names {prefix!r}, but the parameters are {tops}")

    def _problems(
        self,
        prefix: str,
        wanted: Mapping[str, jax.ShapeDtypeStruct],
        anew: Collection[str],
        there: Mapping[str, jax.ShapeDtypeStruct],
        place: str,
    ) -> Iterator[str]:
        """What keeps the leaves below `prefix` from coming from `there`."""
        under = {_below(prefix, name): name for name in wanted if covers(prefix, name)}
        for theirs, ours in under.items():
            if ours in anew or self._of(ours) != prefix:
                continue
            here, other = wanted[ours], there.get(theirs)
            if other is None:
                yield f"{ours} is missing in {place}"
            elif tuple(other.shape) != tuple(here.shape):
                yield f"{ours} has shape {tuple(other.shape)} in {place}, {tuple(here.shape)} here"
            elif other.dtype != here.dtype:
                yield f"{ours} is {other.dtype} in {place}, {here.dtype} here"
        yield from (f"{name} of {place} is not in this run's model" for name in sorted(there.keys() - under.keys()))


def read_frozen(init: Callable[[Array], PyTree], folder: str, layout: Layout) -> Params:
    """Parameters that are used and not trained, on the devices of `layout`.

    Args:
      init: key → boxed parameters, for their shapes and logical axes; nothing is drawn.
      folder: a run's RUN_DIR (FOLDER@STEP for an older checkpoint), or an imported model's.
    Raises:
      ValueError: there is no checkpoint, or it holds other parameters.
      CheckpointError: it is damaged.
    """
    with layout.active():
        boxed = jax.eval_shape(init, jax.random.key(0))
        template = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            unbox(boxed),
            layout.param_shardings(boxed),
        )
    return nested(WarmStart.parse(folder).read(template))


def _below(prefix: str, name: str) -> str:
    return name[len(prefix) :].lstrip("/")


def _at(tree: Mapping, name: str) -> Array:
    node = tree
    for step in name.split("/"):
        node = node[step]
    assert isinstance(node, jax.Array)
    return node
