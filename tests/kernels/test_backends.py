"""What each backend can do, what 'auto' stands for, and that libraries of kernels are imported when these are used."""

import re
import subprocess
import sys

import pytest

from hcxjax.kernels.backends import BACKENDS, Work, chosen
from hcxjax.kernels.target import Target

CPU, A100, TPU = Target("cpu", "cpu"), Target("gpu", "NVIDIA A100-SXM4-80GB"), Target("tpu", "TPU v5 lite")
H100, H200, B200 = (Target("gpu", f"NVIDIA {kind}") for kind in ("H100 80GB HBM3", "H200", "B200"))


USUAL = Work(128, "bfloat16")


@pytest.mark.parametrize(
    ("target", "work", "name"),
    [
        (CPU, USUAL, "xla"),
        (A100, USUAL, "xla"),
        (H100, USUAL, "cudnn"),
        (H200, Work(64, "float16"), "cudnn"),
        (B200, USUAL, "cudnn"),
        (H200, Work(128, "float32"), "xla"),
        (H200, Work(256, "bfloat16"), "xla"),
        (H200, Work(20, "bfloat16"), "xla"),
        (H200, Work(128, "bfloat16", parts=True), "xla"),
        (TPU, Work(64, "bfloat16"), "pallas_tpu"),
        (TPU, Work(128, "float32"), "pallas_tpu"),
        (TPU, Work(128, "bfloat16", parts=True), "pallas_tpu"),
        (TPU, Work(80, "bfloat16"), "xla"),
        (TPU, Work(128, "float16"), "xla"),
    ],
)
def test_auto(target, work, name):
    assert chosen(target, work) == name


@pytest.mark.parametrize(
    ("name", "target", "work", "refusal"),
    [
        ("cudnn", TPU, USUAL, "it runs on gpu, and this is tpu"),
        ("cudnn", A100, USUAL, "it runs on H100, .*, and this is NVIDIA A100-SXM4-80GB"),
        ("cudnn", H200, Work(128, "float32"), r"DecoderConfig\.dtype is float32; it can do bfloat16, float16"),
        ("cudnn", H200, Work(256, "bfloat16"), r"DecoderConfig\.head_dim is 256; it can do 8, 16, .*, 128"),
        ("cudnn", H200, Work(128, "bfloat16", parts=True), r"it takes whole rows, and Layout\.context divides them"),
        ("pallas_tpu", TPU, Work(96, "bfloat16"), r"DecoderConfig\.head_dim is 96; it can do 64, 128"),
        ("pallas_tpu", CPU, USUAL, "it runs on tpu, and this is cpu"),
        ("splash", CPU, USUAL, "it runs on tpu, and this is cpu"),
        ("splash", TPU, Work(128, "bfloat16", parts=True), r"it takes whole rows, and Layout\.context divides them"),
        ("pallas_gpu", B200, USUAL, "it runs on H100, .*, and this is NVIDIA B200"),
        ("pallas_gpu", H200, Work(96, "bfloat16"), r"DecoderConfig\.head_dim is 96; it can do 64, 128"),
        ("pallas_gpu", H200, Work(128, "float32"), r"DecoderConfig\.dtype is float32; it can do bfloat16, float16"),
    ],
)
def test_refusals(name, target, work, refusal):
    assert re.fullmatch(refusal, BACKENDS[name].refusal(target, work))


def test_what_they_can_do_is_not_refused():
    for name, target in (("cudnn", H100), ("cudnn", B200), ("pallas_gpu", H200), ("pallas_tpu", TPU), ("splash", TPU)):
        assert [BACKENDS[name].refusal(target, Work(width, "bfloat16")) for width in (64, 128)] == [None, None]


def test_libraries_of_kernels_are_imported_when_these_are_used():
    libraries = ["jax.experimental.pallas", "hcxjax.kernels.cudnn"]
    program = f"import sys, hcxjax.kernels.attention; print([name for name in {libraries} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"
