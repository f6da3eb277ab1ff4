"""Floating-point operations of the matmuls that a compiled program runs, loops multiplied."""

import math
import re

from hcxjax.planning.hlo import Executed, Run


def matmul_flops(executed: Executed) -> float:
    """FLOPs of a chip: 2 for every multiply-add of dots and convolutions, and what kernels say of theirs.

    XLA writes matmuls as `dot`, or on TPUs as `convolution` with batch dimensions among the spatial ones. A kernel that
    is no XLA program (`custom-call`) counts by its cost estimate, which its author wrote; without one it counts 0.
    """
    counted = {"dot": _dot, "convolution": _convolution, "custom-call": _kernel}
    runs = (run for run in executed.runs if run.instruction.opcode in counted)
    return sum(counted[run.instruction.opcode](run) * run.times for run in runs)


def unknown_kernels(executed: Executed) -> tuple[str, ...]:
    """Targets of kernels that matmuls may hide in, because they say nothing of their cost."""
    found = {}
    for one, _, _ in executed.runs:
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        if one.opcode == "custom-call" and target and re.search(r"tpu_custom_call|mosaic|cudnn|gemm", target[1]):
            found[target[1]] = found.get(target[1], True) and _cost_estimate(one.attributes) is None
    return tuple(sorted(name for name, unknown in found.items() if unknown))


def _dot(run: Run) -> float:
    left = run.operand(0)
    contracted = _numbers(run.instruction.value("lhs_contracting_dims") or "")
    return 2.0 * run.instruction.shapes[0].elements * math.prod(left.dims[at] for at in contracted)


def _kernel(run: Run) -> float:
    return _cost_estimate(run.instruction.attributes) or 0.0


def _cost_estimate(attributes: str) -> float | None:
    found = re.search(r'cost_estimate\\?"?\s*[:=]\s*{[^}]*?flops\\?"?\s*[:=]\s*\\?"?(\d+)', attributes)
    return float(found[1]) if found else None


def _convolution(run: Run) -> float:
    """2 · inputs · outputs · rows · Π over spatial dimensions of (output, window) pairs that meet an element.

    Padding, strides and dilations leave out pairs; a batch dimension of a matmul, written as a spatial one, is a window
    of which one element meets each output. Source: how XLA counts its own (`HloCostAnalysis::HandleConvolution`).
    """
    one = run.instruction
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", one.attributes)
    assert labels is not None, f"{one.name} is a convolution without dim_labels"
    image, kernel, result = (run.operand(0), labels[1]), (run.operand(1), labels[2]), (one.shapes[0], labels[3])
    rows, inputs = _size(result, "b"), _size(kernel, "i")
    outputs = _size(kernel, "o")
    window = _window(one.value("window") or "")
    flops = 2.0 * rows * inputs * outputs
    for at in range(len(labels[1]) - 2):
        spatial = str(at)
        options = {name: values[at] for name, values in window.items() if at < len(values)}
        flops *= _pairs(_size(image, spatial), _size(kernel, spatial), _size(result, spatial), options)
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    return flops / int(groups[1]) if groups else flops


def _size(labelled: tuple, letter: str) -> int:
    shape, labels = labelled
    return shape.dims[labels.index(letter)]


def _window(text: str) -> dict[str, list[tuple[int, ...]]]:
    """{option: its numbers for each spatial dimension} of `size=8x1 stride=7x1 pad=0_0x7_7 lhs_dilate=8x1`."""
    options = {}
    for name, value in re.findall(r"(\w+)=([-\dx_]+)", text):
        options[name] = [tuple(int(number) for number in part.split("_")) for part in value.split("x")]
    return options


def _pairs(image: int, kernel: int, result: int, options: dict[str, tuple[int, ...]]) -> int:
    """(output, window) pairs of a dimension that meet an element of the image."""
    stride, (low, *_) = options.get("stride", (1,))[0], options.get("pad", (0, 0))
    spread, wide = options.get("lhs_dilate", (1,))[0], options.get("rhs_dilate", (1,))[0]
    met = 0
    for offset in range(kernel):
        # Output o meets place o·stride + offset·wide − low of the spread image: whole multiples of `spread` within it.
        start = offset * wide - low
        places = range(start, start + result * stride, stride)
        met += sum(1 for at in places if 0 <= at <= (image - 1) * spread and at % spread == 0)
    return met


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
