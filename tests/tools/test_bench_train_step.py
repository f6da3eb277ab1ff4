"""The bench of a train step: shapes without gin, what a table says, a tiny update, and the peer, the same model."""

import json

import jax
import numpy as np
import pytest

from hcxjax.kernels.target import Target
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.update import abstract_state, lowered_update
from tools import bench_train_step
from tools.bench import main, parser

TINY = """# A comment with an = sign.
VOCAB_SIZE = 64
DecoderConfig.num_layers = 2
DecoderConfig.embed_dim = 16
DecoderConfig.mlp_dim = 24
DecoderConfig.num_heads = 4
DecoderConfig.num_kv_heads = 2
DecoderConfig.head_dim = 8
DecoderConfig.max_length = 8
DecoderConfig.rope_theta = 10000.0
DecoderConfig.dtype = 'float32'
"""


ASKED = ["train_step", "--model", "small", "--length", "16", "--rows", "8", "--steps", "1"]


@pytest.fixture
def options(tmp_path, monkeypatch):
    (tmp_path / "small.gin").write_text(TINY)
    monkeypatch.setattr(bench_train_step, "MODELS", tmp_path)
    return parser().parse_args(ASKED)


def test_a_model_is_read_without_gin():
    model = DecoderConfig(**bench_train_step.model_fields("1b"))
    assert (model.parameters, model.remat, model.dtype) == (1_017_194_496, "dots", "bfloat16")
    with pytest.raises(SystemExit, match=r"--model 2b: there is no 2b\.gin in gin/models; there are 125m, 1b, "):
        bench_train_step.model_fields("2b")


def test_a_tiny_update_is_measured(options, capsys):
    model, length = bench_train_step.configured(options)
    assert (model.max_length, length) == (16, 16)
    assert main([*ASKED, "--side", "jax"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["jax platform"] == "cpu"
    assert found["step_s"] > 0 and found["peak_bytes"] > 1e6 and found["parameters"] == model.parameters


@pytest.mark.parametrize(
    ("platform", "kind", "kernels"),
    [
        ("cuda", "NVIDIA H200", ["__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("]),
        ("tpu", "TPU v5p", ["attention_forward", "attention_dq", "attention_dkv"]),
    ],
)
def test_the_step_of_a_billion_lowers_for_accelerators(monkeypatch, platform, kind, kernels):
    """Whole, with the kernels that `auto` takes there."""
    target = Target("gpu" if platform == "cuda" else platform, kind)
    monkeypatch.setattr(Target, "now", lambda: target)
    options, layout = parser().parse_args(["train_step"]), Layout(devices=(0, 1))
    recipe, (model, length) = bench_train_step.recipe_of(options), bench_train_step.configured(options)
    shapes = {name: (x.shape, x.dtype) for name, x in bench_train_step.whole_rows(model.vocab_size, 8, length).items()}
    with layout.active():
        batch = layout.abstract_batch({name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})
        text = lowered_update(recipe, abstract_state(recipe, layout), batch, platform).as_text()
    for kernel in kernels:
        assert kernel in text


def test_mfu_and_what_did_not_fit(capsys):
    steps = {"jax": [{"step_s": 0.1, "peak_bytes": 2e9}], "torch": [{"step_s": 0.2, "peak_bytes": 3e9}]}
    results = {"flops_per_token": 989e6, "length": 1000, "versions": {"jax device": "NVIDIA H200"}}
    show = bench_train_step.show
    show(results | {"batches": {"10": steps, "20": {"jax": [{"error": "no room"}], "torch": steps["torch"]}}})
    said = capsys.readouterr().out
    assert "| 10 x 1000 | jax | 100,000 | 10.0% | **2.00** | 2.00 | 100.0 |" in said
    assert "| 20 x 1000 | jax | no room |" in said and "| 20 x 1000 | torch | 100,000 | 10.0% | **1.00** |" in said


def test_the_peer_is_the_same_model(options):
    """With our weights it says our loss."""
    torch = pytest.importorskip("torch")
    import dataclasses

    from hcxjax.mesh import unbox
    from hcxjax.objectives.language_model import LanguageModel
    from tools.bench_train_torch import Model

    model, length = bench_train_step.configured(options)
    objective, batch = LanguageModel(model), bench_train_step.whole_rows(model.vocab_size, 2, length)
    params = jax.tree.map(np.asarray, unbox(jax.jit(objective.init)(jax.random.key(0))))
    loss, weight, _ = jax.jit(objective.loss)(params, batch, jax.random.key(0))
    peer = Model(dataclasses.asdict(model), length)
    assert sum(weight.numel() for weight in peer.parameters()) == model.parameters
    layers, inner = params["layers"], model.embed_dim
    ours = {"embedding.weight": params["embed"], "head.weight": params["embed"]}
    ours["final_norm.weight"] = params["norm"]["weight"]
    for number in range(model.num_layers):
        attention, mlp = layers["attention"], layers["mlp"]
        flat = {
            f"attention.{name}": attention[name]["weight"][number].reshape(inner, -1)
            for name in ("query", "key", "value")
        }
        flat["attention.output"] = attention["output"]["weight"][number].reshape(-1, inner)
        flat |= {name: mlp[name]["weight"][number] for name in ("gate", "up", "down")}
        ours |= {f"layers.{number}.{name}.weight": weight.T for name, weight in flat.items()}
        ours |= {
            f"layers.{number}.{name}.weight": layers[name]["weight"][number] for name in ("input_norm", "mlp_norm")
        }
    peer.load_state_dict({name: torch.tensor(weight) for name, weight in ours.items()})
    tokens, targets = (torch.tensor(batch[name]).long() for name in ("tokens_BT", "targets_BT"))
    assert peer(tokens, targets).item() == pytest.approx(float(loss / weight), rel=1e-5)
