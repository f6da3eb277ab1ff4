"""Low-rank adaptation: any objective, of which only thin matrices beside the weights are trained."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from hcxjax.checks import number, whole
from hcxjax.models.config import MATRICES, DecoderConfig
from hcxjax.models.likelihood import TokenScores
from hcxjax.models.low_rank import LowRankWeight, merged, thin_pair
from hcxjax.partition import covers
from hcxjax.protocols import Array, Batch, Metrics, Params


@runtime_checkable
class Writes(Protocol):
    """An objective whose parameters hold more than the decoder that writes."""

    def policy(self, params: Params) -> Params: ...


@dataclasses.dataclass(frozen=True)
class LoRA:
    """An objective whose layers compute x W + (alpha / rank) · x a b; a and b are trained, W stays.

    Parameters are `{"base": those of the objective, "adapter": a and b by the paths of the weights they change}`. In
    all else it takes the objective's place, and has those of its functions and sizes that others ask for.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, without dropout. All layers of a block by default, after
    Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 4; Hu et al. adapt queries and values.

    Attributes:
      objective: what is trained.
      rank: R.
      alpha: over `rank`, what the change is multiplied with.
      targets: names of the layers that are changed.
      also: prefixes of paths in the objective's parameters that train whole, such as a reward model's new 'head'.
    """

    objective: Any
    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(MATRICES)
    also: tuple[str, ...] = ()

    def __post_init__(self):
        whole(self, 1, "rank")
        number(self, "alpha")
        if not self.alpha > 0:
            raise ValueError(f"LoRA.alpha is {self.alpha}; it must be positive")
        for field in ("targets", "also"):
            if isinstance(getattr(self, field), str):
                raise ValueError(f"LoRA.{field} is {getattr(self, field)!r}; it must be a tuple of names")
            # Hashable, because an objective is static under jit.
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.targets or not set(self.targets) <= MATRICES.keys():
            raise ValueError(f"LoRA.targets is {self.targets}; it must name some of {', '.join(MATRICES)}")

    @property
    def trainable(self) -> tuple[str, ...]:
        """Prefixes of the parameters that train."""
        return ("adapter", *(f"base/{prefix.strip('/')}" for prefix in self.also))

    @property
    def model(self) -> DecoderConfig:
        """Sizes of the decoder."""
        return self.objective.model

    @property
    def critic(self) -> DecoderConfig:
        """Sizes of the value network, of an objective that has one."""
        return self.objective.critic

    @property
    def temperature(self) -> float:
        """Of the policy, of an objective over rollouts."""
        return self.objective.temperature

    def init(self, rng: Array) -> Params:
        """Boxed parameters; what the adapter draws does not depend on which other layers have one."""
        base = self.objective.init(rng)
        self._check_also(base)
        adapter: dict[str, Any] = {}
        for path, weight in _targets(base, self.targets):
            *above, last = path
            node = functools.reduce(lambda node, step: node.setdefault(step, {}), above, adapter)
            key = jax.random.fold_in(rng, zlib.crc32("/".join(path).encode()))
            node[last] = thin_pair(key, weight, MATRICES[path[-2]], self.rank)
        return {"base": base, "adapter": adapter}

    def _check_also(self, base: Params) -> None:
        for prefix in self.also:
            node = base
            for step in prefix.strip("/").split("/"):
                if not isinstance(node, Mapping) or step not in node:
                    raise ValueError(f"LoRA.also names {prefix!r}, but the parameters are {', '.join(sorted(base))}")
                node = node[step]

    def base(self, params: Params) -> Params:
        """The objective's parameters without the adapter.

        An update does not donate what is frozen: whoever is given it may keep it. What `also` names is donated.
        """
        return params["base"]

    def placed(self, params: Params) -> Params:
        """The objective's parameters with low-rank weights in their places, for its own functions."""
        return _placed(params["base"], params["adapter"], self.alpha / self.rank)

    def merged(self, params: Params) -> Params:
        """The objective's parameters with the changes added to the weights: new arrays, of those that change."""
        return merged(self.placed(params))

    def policy(self, params: Params) -> Params:
        """The decoder's parameters, merged, for those who let it write."""
        return self._decoder(self.merged(params))

    def reference(self, params: Params) -> Params:
        """The decoder's parameters without the adapter."""
        return self._decoder(self.base(params))

    def _decoder(self, inner: Params) -> Params:
        return self.objective.policy(inner) if isinstance(self.objective, Writes) else inner

    def loss(self, params: Params, batch: Batch, rng: Array) -> tuple[Array, Array, Metrics]:
        """(sum, weight, metrics) of the objective."""
        return self.objective.loss(self.placed(params), batch, rng)

    def scores(self, params: Params, batch: Batch) -> TokenScores:
        """What the model says of every target of `batch`."""
        return self.objective.scores(self.placed(params), batch)

    def rewards(self, params: Params, batch: Batch) -> Array:
        """reward_BK, of an objective over comparisons."""
        return self.objective.rewards(self.placed(params), batch)

    def judged(self, params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        """(logprob_BT, entropy_BT, value_BT), of an objective over rollouts."""
        return self.objective.judged(self.placed(params), batch)

    def logprobs(self, policy: Params, batch: Batch) -> Any:
        """The objective's own, of a decoder that `policy` or `reference` gave."""
        return self.objective.logprobs(policy, batch)

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one update on the whole batch.

        The objective's, and for each token 6 more for every number of a and b, and 2 less for every number of a frozen
        weight of a block or of an output table: its gradient is not computed. A token is taken to pass through all
        layers of the parameters once.
        """
        tokens = sum(rows.size for name, rows in batch.items() if name in ("tokens_BT", "tokens_BKT"))
        return self.objective.flops(batch) + tokens * self._more_flops_per_token

    @functools.cached_property
    def _more_flops_per_token(self) -> float:
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        frozen = [weight for path, weight in _targets(shapes["base"], MATRICES) if not self._trains(path)]
        frozen += [table for path, table in _tables(shapes["base"]) if not self._trains(path)]
        return 6.0 * _numbers(shapes["adapter"]) - 2.0 * _numbers(frozen)

    def _trains(self, path: tuple[str, ...]) -> bool:
        return any(covers(prefix.strip("/"), "/".join(path)) for prefix in self.also)


def _targets(tree: Mapping[str, Any], names, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, boxed weight) of the layers of these names."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from _targets(child, names, (*above, name))
        elif name == "weight" and above and above[-1] in names:
            yield (*above, name), child


def _tables(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, boxed table) of what decoders' logits are made with; a scalar model's decoder makes none."""
    for name, child in tree.items():
        if isinstance(child, Mapping) and name != "decoder":
            yield from _tables(child, (*above, name))
    if "layers" in tree:
        name = "head" if "head" in tree else "embed"
        yield (*above, name), tree[name]


def _numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _placed(base: Any, adapter: Mapping[str, Any], scale: float) -> Any:
    if not isinstance(base, Mapping):
        return LowRankWeight(base, adapter["a"], adapter["b"], scale)
    return {name: _placed(child, adapter[name], scale) if name in adapter else child for name, child in base.items()}
