"""Training with the weight matmuls of the layers in eight bits, through qwix; nothing else imports it.

Weights and activations are scaled to their largest value in each output channel and each token, rounded, multiplied on
the chip's eight-bit units and scaled back; weights stay float32 in the optimizer. The head, norms and attention do not
change.
"""

from typing import TYPE_CHECKING

from hcxjax.kernels.target import Target
from hcxjax.models.config import MATRICES, DecoderConfig

if TYPE_CHECKING:
    import flax.linen as nn

_FORMATS = {"int8": ("int8", None), "fp8": ("float8_e4m3fn", "float8_e5m2")}
"""Format of weights and activations, and of the gradients that come back; None leaves those in the compute dtype,
because int8 without stochastic rounding loses what is small."""

_WITHOUT = {
    "int8": ("TPU v4", "TPU v3", "TPU v2"),
    "fp8": ("TPU v2", "TPU v3", "TPU v4", "TPU v5", "TPU v6", "NVIDIA A", "NVIDIA V", "Tesla"),
}
"""How the names of chips begin that have no such units: there it would cost time and save none."""


def in_low_precision(block: type["nn.Module"], config: DecoderConfig) -> type["nn.Module"]:
    """`block` with its weight matmuls in `config.matmuls`.

    Raises:
      ValueError: qwix is not installed, or the chip has no such units.
    """
    target = Target.now()
    if target.device_kind.startswith(_WITHOUT[config.matmuls]):
        raise ValueError(
            f"DecoderConfig.matmuls is {config.matmuls!r}, and {target.device_kind} has no such units; "
            "set it to 'dtype'"
        )
    try:
        import qwix
    except ImportError as error:
        raise ValueError(
            f"DecoderConfig.matmuls is {config.matmuls!r}, which needs the package qwix: "
            "pip install -e '.[low-precision]'"
        ) from error
    forward, backward = _FORMATS[config.matmuls]
    rule = qwix.QtRule(
        module_path=f".*/({'|'.join(MATRICES)})", weight_qtype=forward, act_qtype=forward, bwd_qtype=backward
    )
    return type(qwix.quantize_model(block(config), qwix.QtProvider([rule])))
