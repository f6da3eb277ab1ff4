"""What the backward pass finds of a layer, and what it computes again."""

from collections.abc import Callable
from typing import Any

from jax import checkpoint_policies as policies

from hcxjax.models.config import DecoderConfig

_ATTENTION = policies.save_only_these_names("attention", "attention_lse")
_DOTS = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, _ATTENTION)
_BY_NAME: dict[str, Callable[..., bool]] = {
    "full": policies.nothing_saveable,
    "attention": _ATTENTION,
    "dots": _DOTS,
    # In a pipeline alone. Part of what a layer computes, such as weights in another dtype, is the same for all
    # microbatches and would be kept for each.
    "none": _DOTS,
}


def kept(config: DecoderConfig) -> Callable[..., Any]:
    """The policy of `jax.checkpoint` that `config.remat` and `config.offload` ask for."""
    if isinstance(config.remat, str):
        return _BY_NAME[config.remat]
    if not config.offload:
        return policies.save_only_these_names(*config.remat)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(config.remat),
        names_which_can_be_offloaded=list(config.offload),
        offload_src="device",
        offload_dst="pinned_host",
    )
