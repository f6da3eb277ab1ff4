"""Checkpoints come back as they were saved, or say why not."""

import collections
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax import checksums
from hcxjax.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    CheckpointTimeoutError,
    KeepPolicy,
    Streamed,
    read,
    stored_leaves,
    write_streamed,
)
from hcxjax.checksums import CHECKSUMS

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def tree(value: float = 0.0) -> dict:
    ramp = jax.device_put(jnp.arange(40_000, dtype=jnp.float32).reshape(200, 200) + value, SHARDING)
    return {"state": {"params": {"wide": ramp, "half": ramp[:4].astype(jnp.bfloat16)}}, "host": {"at": np.asarray(7)}}


def template(saved: dict) -> dict:
    def abstract(leaf):
        return leaf if isinstance(leaf, np.ndarray) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SHARDING)

    return jax.tree.map(abstract, saved)


def folder_with(directory: Path, *steps: int, **policy) -> CheckpointFolder:
    folder = CheckpointFolder(directory, KeepPolicy(**policy))
    for step in steps:
        folder.save(step, tree(step))
    folder.wait()
    return folder


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_comes_back_is_what_was_saved(tmp_path):
    folder = folder_with(tmp_path, 3)
    step, restored = folder.restore_latest(template(tree()))
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, restored, tree(3))
    assert restored["state"]["params"]["half"].dtype == jnp.bfloat16
    assert int(restored["host"]["at"]) == 7


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert folder_with(tmp_path).restore_latest(template(tree())) is None


def test_latest_best_and_period_stay(tmp_path):
    folder = CheckpointFolder(tmp_path, KeepPolicy(latest=2, best=1, period=6))
    for step in range(1, 10):
        folder.save(step, tree(step), score=-abs(step - 3))
    folder.wait()
    assert folder.steps() == [3, 6, 8, 9]


def test_the_best_stays_after_the_folder_was_opened_anew(tmp_path):
    for step in range(1, 7):
        folder = CheckpointFolder(tmp_path, KeepPolicy(latest=2, best=1))
        folder.save(step, tree(step), score=-abs(step - 2))
        folder.close()
    assert folder.steps() == [2, 5, 6]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "checksums", "metadata"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, harm, caplog):
    folder = folder_with(tmp_path, 1, 2)
    small = {"checksums": CHECKSUMS, "metadata": "tree/_METADATA"}
    victim = tmp_path / "2" / small[harm] if harm in small else largest_file(tmp_path / "2")
    content = bytearray(victim.read_bytes())
    if harm == "remove":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    step, restored = folder.restore_latest(template(tree()))
    assert step == 1
    np.testing.assert_array_equal(restored["state"]["params"]["wide"], tree(1)["state"]["params"]["wide"])
    assert "checkpoint 2 is damaged" in caplog.text
    assert victim.name in caplog.text
    said = {"flip": "other contents", "truncate": "bytes, ", "remove": "is missing", "checksums": "cannot be read"}
    assert said.get(harm, "") in caplog.text
    folder.save(2, tree(2))
    folder.wait()
    assert folder.steps() == [1, 2]


def test_when_all_are_damaged_it_says_so(tmp_path):
    folder = folder_with(tmp_path, 1, 2)
    for step in (1, 2):
        largest_file(tmp_path / str(step)).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged \(1.corrupt, 2.corrupt\)"):
            folder.restore_latest(template(tree()))
        folder = CheckpointFolder(tmp_path, KeepPolicy())


def test_another_shape_dtype_or_tree_is_refused_by_name(tmp_path):
    folder = folder_with(tmp_path, 1)
    wanted = template(tree())
    params = wanted["state"]["params"]
    params["wide"] = jax.ShapeDtypeStruct((200, 100), jnp.float32, sharding=SHARDING)
    params["half"] = jax.ShapeDtypeStruct((4, 200), jnp.float32, sharding=SHARDING)
    params["more"] = params["half"]
    del wanted["host"]
    with pytest.raises(ValueError) as refused:
        folder.restore(1, wanted)
    message = str(refused.value)
    assert "state/params/wide has shape (200, 200), the run's has (200, 100)" in message
    assert "state/params/half is bfloat16, the run's is float32" in message
    assert "state/params/more is missing" in message
    assert "host/at is not in the run's state" in message


def test_part_of_a_checkpoint_is_read_while_it_is_in_use(tmp_path):
    folder = folder_with(tmp_path, 1, 2)
    wanted = {"state": {"params": template(tree())["state"]["params"]}}
    step, part = read(tmp_path, wanted)
    assert step == 2
    assert set(part) == {"state"}
    assert float(read(tmp_path, wanted, 1)[1]["state"]["params"]["wide"][0, 0]) == 1.0
    with pytest.raises(ValueError, match=r"no checkpoint of step 5; it has steps \[1, 2\]"):
        read(tmp_path, wanted, 5)
    with pytest.raises(ValueError, match="there is no folder"):
        read(tmp_path / "elsewhere", wanted)
    assert folder.steps() == [1, 2]


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    folder = folder_with(tmp_path, 1)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(
        CheckpointError, match=r"checkpoint 2 .*1,000 are free; the checkpoints of steps \[1\] are untouched"
    ):
        folder.save(2, tree())
    assert folder.steps() == [1]


def test_a_policy_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match=r"KeepPolicy\.latest is 0"):
        KeepPolicy(latest=0)


WIDE = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)


def streamed(read_part=lambda layer: WIDE[layer : layer + 1], layers=3) -> dict:
    """A tree with a leaf in parts of a layer, and one in parts of two rows of which the last has one."""

    def wide():
        for layer in range(layers):
            yield (slice(layer, layer + 1), slice(None), slice(None)), read_part(layer)

    def narrow():
        yield (slice(0, 2),), np.asarray([0, 1], np.float32)
        yield (slice(2, 3),), np.asarray([2], np.float32)

    float32 = np.dtype(np.float32)
    leaves = {"wide": Streamed((3, 4, 5), float32, (1, 4, 5), wide), "narrow": Streamed((3,), float32, (2,), narrow)}
    return {"state": {"params": leaves}}


def test_leaves_are_written_part_by_part_and_read_like_others(tmp_path):
    write_streamed(tmp_path, 0, streamed())
    shapes = {"wide": (3, 4, 5), "narrow": (3,)}
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=SHARDING) for name, shape in shapes.items()}
    step, restored = read(tmp_path, {"state": {"params": wanted}})
    assert step == 0
    np.testing.assert_array_equal(restored["state"]["params"]["wide"], WIDE)
    np.testing.assert_array_equal(restored["state"]["params"]["narrow"], [0, 1, 2])
    assert (tmp_path / "0" / CHECKSUMS).is_file()


def test_leaves_are_read_slice_by_slice(tmp_path):
    write_streamed(tmp_path / "streamed", 0, streamed())
    folder_with(tmp_path / "saved", 2, 5).close()
    _, leaves = stored_leaves(tmp_path / "streamed")
    wide = leaves["state/params/wide"]
    assert (wide.shape, wide.dtype, wide.block) == ((3, 4, 5), np.float32, (1, 4, 5))
    np.testing.assert_array_equal(wide.read((slice(1, 3), slice(0, 2))), WIDE[1:3, :2])
    step, leaves = stored_leaves(tmp_path / "saved", 2)
    assert step == 2
    assert leaves["state/params/half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaves["state/params/wide"].read((7,)), tree(2)["state"]["params"]["wide"][7])
    with pytest.raises(ValueError, match="no checkpoint of step 3"):
        stored_leaves(tmp_path / "saved", 3)
    largest = largest_file(tmp_path / "saved" / "5")
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"checkpoint 5 .* is damaged"):
        stored_leaves(tmp_path / "saved")


def test_a_part_that_fails_leaves_no_checkpoint(tmp_path):
    def unreadable(layer):
        if layer == 2:
            raise ValueError("the source is torn")
        return WIDE[layer : layer + 1]

    for tree_, message in ((streamed(unreadable), "the source is torn"), (streamed(layers=2), "has 60 values")):
        with pytest.raises(CheckpointError, match=message):
            write_streamed(tmp_path, 0, tree_)
        assert CheckpointFolder(tmp_path, KeepPolicy(), read_only=True).steps() == []


def test_a_save_that_takes_too_long_is_told_and_leaves_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr("hcxjax.checkpoint._SLACK_S", 0)
    folder = CheckpointFolder(tmp_path, KeepPolicy(), save_s=1)
    folder.save(1, tree(1))
    folder.wait()
    written = threading.Event()
    seal = checksums.seal
    monkeypatch.setattr(checksums, "seal", lambda *sealed: written.wait(20) and seal(*sealed))
    folder.save(2, tree(2))
    folder.check()
    late = r"checkpoint 2 could not be written to .* within 1 s \(TimeLimits.save_s\): .*steps \[1\] are untouched"
    before = time.monotonic()
    with pytest.raises(CheckpointTimeoutError, match=late):
        folder.wait()
    assert time.monotonic() - before < 10
    with pytest.raises(CheckpointTimeoutError, match=late):
        folder.check()
    written.set()
    while folder._manager.is_saving_in_progress():
        time.sleep(0.01)
    folder.close()


def test_those_that_did_not_write_are_named(tmp_path, monkeypatch):
    """The words are jaxlib's; a test of two processes sees them come from it (tests/test_peers.py)."""

    def nobody_came(*, key, timeout_ms):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: ... Some timed out task names:\n1\n3\n\n\nRPC: /x")

    folder = folder_with(tmp_path, 1)
    monkeypatch.setattr("orbax.checkpoint.multihost.get_barrier_sync_fn", lambda: nobody_came)
    with pytest.raises(jax.errors.JaxRuntimeError):
        folder._barrier(key="written", timeout_ms=10)
    with pytest.raises(CheckpointTimeoutError, match="process 1, 3 did not write its part"):
        folder.check()
