"""cuDNN's packed attention: lowered for CUDA, and what it is told checked by a stand-in that does as it is told."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from hcxjax.kernels import cudnn
from hcxjax.kernels.cudnn import cudnn_attention, documents_at_once
from hcxjax.kernels.plan import Tile, attention_plan
from hcxjax.kernels.reference import reference_attention
from hcxjax.kernels.xla import xla_attention
from tests.kernels.absent import absent_gpu, on_h200

CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


class Packed:
    """Does what cuDNN says of ragged tensors: sequence m has its first number at offsets[m], and lengths[m] tokens.

    Nothing else is written: there NaN is left. Log-sums are [sequences, heads, length], from place 0 of each sequence.
    """

    def bind(self, q, k, v, bias, q_lengths, kv_lengths, q_offsets, kv_offsets, pages, more_pages, *kept, **settings):
        assert settings["mask_type"] is cudnn.stablehlo.MaskType.PADDING_CAUSAL and bias.size == pages.size == 0
        count, self.length, self.lengths = q_lengths.size, q.shape[1], q_lengths.reshape(-1)
        at_q, at_kv = (self.places(offsets.reshape(-1)[:count], x) for offsets, x in ((q_offsets, q), (kv_offsets, k)))
        groups, place = q.shape[2] // k.shape[2], jnp.arange(self.length)
        valid = (place[None, :] <= place[:, None]) & (place < self.lengths[:, None, None])
        valid = (valid & (place[:, None] < self.lengths[:, None, None]))[:, None]
        q_own, (k_own, v_own) = q.ravel()[at_q], (jnp.repeat(x.ravel()[at_kv], groups, axis=2) for x in (k, v))
        s = jnp.where(valid, jnp.einsum("mtnh,msnh->mnts", q_own, k_own) * settings["scale"], -jnp.inf)
        if not kept:
            sums = jax.nn.logsumexp(s, axis=-1)
            p = jnp.where(valid, jnp.exp(s - sums[..., None]), 0)
            o = self.written(jnp.einsum("mnts,msnh->mtnh", p, v_own), at_q, q)
            own = (place < self.lengths[:, None])[:, None]
            return [o, jnp.where(own, sums, jnp.nan)] if settings["is_training"] else [o]
        sums, o, do = kept[0], *(x.ravel()[at_q] for x in kept[1:])
        p = jnp.where(valid, jnp.exp(s - sums[..., None]), 0)
        ds = p * (jnp.einsum("mtnh,msnh->mnts", do, v_own) - jnp.sum(do * o, axis=-1).swapaxes(1, 2)[..., None])
        ds = jnp.where(valid, ds * settings["scale"], 0)
        dk, dv = jnp.einsum("mnts,mtnh->msnh", ds, q_own), jnp.einsum("mnts,mtnh->msnh", p, do)
        dk, dv = (x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3) for x in (dk, dv))
        dq = self.written(jnp.einsum("mnts,msnh->mtnh", ds, k_own), at_q, q)
        return [dq, self.written(dk, at_kv, k), self.written(dv, at_kv, v)]

    def places(self, offsets, x):
        inside = jnp.arange(self.length * x.shape[2] * x.shape[3]).reshape(self.length, *x.shape[2:])
        return offsets[:, None, None, None] + inside

    def written(self, own, at, x):
        inside = (jnp.arange(self.length) < self.lengths[:, None])[..., None, None]
        return jnp.full(x.size, jnp.nan).at[jnp.where(inside, at, x.size)].set(own, mode="drop").reshape(x.shape)


@pytest.fixture
def packed(monkeypatch):
    for name in ("_dot_product_attention_fwd_p", "_dot_product_attention_bwd_p"):
        monkeypatch.setattr(cudnn.stablehlo, name, Packed())


def rows(*parts, length=40):
    """Segment ids of rows: documents of these sizes, one after another; 0 is padding of as many as follow it."""
    segments = np.zeros((len(parts), length), np.int32)
    for row, sizes in enumerate(parts):
        ids = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        segments[row, : len(ids)] = ids
    return jnp.asarray(segments)


def both_passes(attention, segments, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v, do = (jnp.asarray(rng.normal(size=(*segments.shape, n, 8)), jnp.float32) for n in (4, 2, 2, 4))
    plan = attention_plan(segments, Tile(16, 16))
    o, backward = jax.vjp(jax.jit(lambda *qkv: attention(*qkv, plan, scale=0.3)[0]), q, k, v)
    return o, *backward(do)


def test_documents_are_told_apart(packed):
    """Fewer than go at once and more, of one token, a whole row, padding in front and behind, a row of padding."""
    segments = rows([40], [1] * 40, [7, 1, 19], [], [2] * 17, [40])
    segments = segments.at[5, :6].set(0)
    assert documents_at_once(40) == 16
    exact, found = (both_passes(attention, segments) for attention in (reference_attention, cudnn_attention))
    for one, other, name in zip(exact, found, ("o", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, err_msg=name)
        assert not np.any(np.asarray(other)[np.asarray(segments) == 0]), f"{name} of padding"


def test_documents_out_of_order_become_nan(packed):
    """As cuDNN is told of them, a document in two places would be two."""
    segments = rows([20, 20], [20, 20], [20, 20]).at[1, 30:].set(1).at[2, 5:9].set(0)
    o = both_passes(cudnn_attention, segments)[0]
    assert [bool(np.all(np.isnan(row))) for row in np.asarray(o)] == [False, True, True]
    assert np.all(np.isfinite(o[0]))


def test_room_for_documents():
    assert [documents_at_once(length) for length in (1, 8, 512, 4096, 8192, 32768)] == [2, 8, 16, 16, 32, 128]


def one_pass_or_both(passes, q, k, v, segments):
    plan = attention_plan(segments, Tile(512, 512))
    o, backward = jax.vjp(lambda *qkv: cudnn_attention(*qkv, plan, scale=0.1)[0], q, k, v)
    return o if passes == 1 else backward(o)


@pytest.mark.parametrize("passes", [1, 2], ids=["forward", "backward"])
def test_lowers_for_cuda(passes):
    q, kv = (jax.ShapeDtypeStruct((2, 1024, heads, 128), jnp.bfloat16) for heads in (8, 2))
    unchecked = [export.DisabledSafetyCheck.custom_call(call) for call in CALLS]
    run = jax.jit(functools.partial(one_pass_or_both, passes))
    lower = export.export(run, platforms=["cuda"], disabled_checks=unchecked)
    text = lower(q, kv, kv, jax.ShapeDtypeStruct((2, 1024), jnp.int32)).mlir_module()
    assert [text.count(f"@{call}(") for call in CALLS] == [1, passes - 1]
    assert text.count(r"\22mask_type\22: \22PADDING_CAUSAL\22") == text.count(r"\22max_seg_per_batch\22: 16") == passes


@absent_gpu
def test_compiles_for_a_gpu_that_is_not_there():
    """All but what cuDNN itself does: it is handed arrays as they are, none is copied into another layout for it."""
    q, kv = (on_h200((2, 4096, heads, 128), jnp.bfloat16) for heads in (8, 2))
    run = jax.jit(functools.partial(one_pass_or_both, 2))
    text = run.lower(q, kv, kv, on_h200((2, 4096), jnp.int32)).compile().as_text()
    assert len(re.findall(r'custom_call_target="__cudnn\$fmhaSoftmax(Backward)?"', text)) == 2
    assert not re.findall(r"bf16\[[\d,]+\](?!\{3,2,1,0\})\S* copy\(|bf16\S+ transpose\(", text)


def test_mistakes():
    q, k = jnp.zeros((1, 8, 2, 8), jnp.bfloat16), jnp.zeros((1, 16, 2, 8), jnp.bfloat16)
    plan = attention_plan(rows([8], length=8), Tile(8, 8), kv_segments_BS=rows([16], length=16))
    with pytest.raises(ValueError, match="takes whole rows; it was given 8 queries and 16 keys"):
        cudnn_attention(q, k, k, plan, scale=1.0)
    huge = jax.ShapeDtypeStruct((256, 2**16, 1, 128), jnp.bfloat16)
    plan = jax.eval_shape(
        lambda ids: attention_plan(ids, Tile(512, 512)), jax.ShapeDtypeStruct((256, 2**16), jnp.int32)
    )
    with pytest.raises(ValueError, match="2,147,483,648 are too many: make BATCH smaller"):
        jax.eval_shape(lambda x: cudnn_attention(x, x, x, plan, scale=1.0)[0], huge)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU from Hopper on")
def test_as_good_as_xla_on_a_gpu():
    """max|x − x32| ≤ 2 max|x_xla − x32| + 1e-3, where x32 is the float32 reference; one pass and two."""
    rng = np.random.default_rng(0)
    segments = rows([700, 1, 1000, 300], [2000], [50] * 40, length=2048)
    arrays = [jnp.asarray(rng.normal(size=(3, 2048, n, 128)), jnp.bfloat16) for n in (8, 2, 2, 8)]

    @functools.partial(jax.jit, static_argnames="attention")
    def passes(q, k, v, do, attention):
        plan = attention_plan(segments, Tile(128, 128))
        o, backward = jax.vjp(lambda *qkv: attention(*qkv, plan, scale=0.09)[0], q, k, v)
        return o, *backward(do.astype(o.dtype))

    exact = passes(*(x.astype(jnp.float32) for x in arrays), attention=reference_attention)
    ours, theirs = (passes(*arrays, attention=attention) for attention in (cudnn_attention, xla_attention))
    for found, xla, x32, name in zip(ours, theirs, exact, ("o", "dq", "dk", "dv"), strict=True):
        found, xla, x32 = (np.asarray(x, np.float32) for x in (found, xla, x32))
        assert np.abs(found - x32).max() <= 2 * np.abs(xla - x32).max() + 1e-3, name
        assert not np.any(found[np.asarray(segments) == 0]), f"{name} of padding"
