"""Eight CPU devices for every test, a cache of compiled programs, and the tiny models and batches that tests share."""

import fcntl
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

# Before anything asks jax for a device: afterwards the number can no longer change.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
# The suite's time is XLA's compiling. These make it eight times shorter and leave what is compiled the same program; an
# unknown flag would abort jax, hence only in releases that are known to have it.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10) and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs outlive the session: compiling is most of what the suite does."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path(config.rootpath) / ".pytest_cache" / "jax")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def tiny():
    """A decoder of two layers whose sizes all differ, so that a mixed-up axis is an error and no coincidence."""
    from hcxjax.models.config import DecoderConfig

    return DecoderConfig(
        vocab_size=61,
        num_layers=2,
        embed_dim=32,
        mlp_dim=40,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_length=32,
        rope_theta=1000.0,
        dtype="float32",
    )


@pytest.fixture(scope="session")
def random_params() -> Callable:
    """(config, seed) → parameters drawn by numpy: nothing to compile, and norms whose weights are not all 1."""
    from hcxjax.mesh import unbox
    from hcxjax.objectives.language_model import LanguageModel

    def draw(config, seed: int = 0):
        rng = np.random.default_rng(seed)
        shapes = unbox(jax.eval_shape(LanguageModel(config).init, jax.random.key(0)))

        def leaf(path, shape):
            noise = rng.normal(size=shape.shape).astype(np.float32)
            return jax.numpy.asarray(1 + 0.3 * noise if "norm" in jax.tree_util.keystr(path) else 0.25 * noise)

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw


@pytest.fixture(scope="session")
def packed() -> Callable:
    """(rows, length, vocabulary size, seed) → a batch of several documents a row, uneven weights, a padding tail."""

    def build(rows: int, length: int, vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        segments, positions = np.zeros((2, rows, length), np.int32)
        for row in range(rows):
            tail, at, document = int(rng.integers(0, length // 4)), 0, 0
            while at < length - tail:
                document += 1
                size = min(int(rng.integers(1, length // 2 + 1)), length - tail - at)
                segments[row, at : at + size] = document
                positions[row, at : at + size] = np.arange(size)
                at += size
        weights = rng.integers(0, 3, size=(rows, length)).astype(np.float32) * (segments > 0)
        return {
            "tokens_BT": rng.integers(1, vocab, size=(rows, length)).astype(np.int32) * (segments > 0),
            "targets_BT": rng.integers(0, vocab, size=(rows, length)).astype(np.int32),
            "weights_BT": weights,
            "segment_ids_BT": segments,
            "positions_BT": positions,
            "source_B": rng.integers(0, 3, size=rows).astype(np.int32),
        }

    return build


@pytest.fixture(scope="session")
def comparisons() -> Callable:
    """(rows, width, vocabulary size, seed, texts) → a batch of answers of several lengths, its last row filling up.

    Of two texts the first is preferred. Of more, some pairs are compared, either way round, and the first row lacks the
    last text.
    """

    def build(rows: int, width: int, vocab: int, seed: int = 0, texts: int = 2) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        start_B = rng.integers(1, width // 2, rows)
        end_BK = rng.integers(start_B[:, None], width, size=(rows, texts))
        tokens_BKT = rng.integers(1, vocab, size=(rows, texts, width))
        tokens_BKT = np.where(np.arange(width) < start_B[:, None, None], tokens_BKT[:, :1], tokens_BKT)
        preferred_BKK = np.triu(np.ones((rows, texts, texts)), 1)
        if texts > 2:
            preferred_BKK *= rng.random(preferred_BKK.shape) < 0.8
            around_BKK = np.triu(rng.random(preferred_BKK.shape) < 0.5)
            preferred_BKK = preferred_BKK * ~around_BKK + (preferred_BKK * around_BKK).swapaxes(1, 2)
            end_BK[0, -1] = preferred_BKK[0, -1] = preferred_BKK[0, :, -1] = 0
        end_BK[-1] = start_B[-1] = preferred_BKK[-1] = 0
        here_BKT = (np.arange(width) <= end_BK[..., None]) & (end_BK[..., None] > 0)
        whole = {"tokens_BKT": tokens_BKT * here_BKT, "start_B": start_B, "end_BK": end_BK}
        whole |= {"source_B": rng.integers(0, 3, rows), "prompt_B": np.arange(rows)}
        margin_BKK = rng.uniform(0, 2, preferred_BKK.shape) * preferred_BKK
        batch = {name: value.astype(np.int32) for name, value in whole.items()}
        return batch | {
            name: value.astype(np.float32)
            for name, value in (("preferred_BKK", preferred_BKK), ("margin_BKK", margin_BKK))
        }

    return build


@pytest.fixture(scope="session")
def one_by_one() -> Callable:
    """batch → the same comparisons, each in a row of two texts."""

    def parted(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        row, *pair = np.nonzero(batch["preferred_BKK"])
        sides, rows = np.stack(pair, 1), {name: value[row] for name, value in batch.items()}
        for name in rows.keys() & {"tokens_BKT", "end_BK", "reference_BK"}:
            rows[name] = rows[name][np.arange(len(row))[:, None], sides]
        for name in ("preferred_BKK", "margin_BKK"):
            rows[name] = np.zeros((len(row), 2, 2), np.float32)
            rows[name][:, 0, 1] = batch[name][row, pair[0], pair[1]]
        return rows

    return parted


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files of whole runs come first: they take longest, and at the end one worker would wait for the other's."""
    items.sort(key=lambda item: item.path.parent != config.rootpath / "tests")


@pytest.fixture(scope="session")
def compiled(pytestconfig) -> dict[str, str]:
    """Environment of a child with one device and a compilation cache that all children share."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    cache = pytestconfig.rootpath / ".pytest_cache" / "jax_runs"
    return environment | {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }


@pytest.fixture(autouse=True)
def no_process_is_left():
    """A test that fails would otherwise leave its runs to take the time of all that follow."""
    yield
    if "tests.runs" in sys.modules:
        sys.modules["tests.runs"].end_all()


@pytest.fixture(scope="session")
def whole(compiled, tmp_path_factory) -> Path:
    """The run that every other is compared with: 16 steps without interruption. It also writes the data.

    The first worker that asks for it makes it, for all.
    """
    from tests.runs import finish, start

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder, made = session / "whole" / "run", session / "whole_is_made"
    with (session / "whole_is_being_made").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            finish(start(folder, folder, compiled))
            made.touch()
    return folder
