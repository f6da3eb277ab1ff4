"""Eight CPU devices for every test, a cache of compiled programs, and the tiny models and batches that tests share."""

import os
from collections.abc import Callable
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
    """(rows, width, vocabulary size, seed) → a batch of answers of several lengths, its last row filling up."""

    def build(rows: int, width: int, vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        start_B = rng.integers(1, width // 2, rows)
        ends_2B = rng.integers(start_B, width, size=(2, rows))
        tokens_2BT = rng.integers(1, vocab, size=(2, rows, width))
        prompt_BT = np.arange(width) < start_B[:, None]
        tokens_2BT[1] = np.where(prompt_BT, tokens_2BT[0], tokens_2BT[1])
        batch = {
            "chosen_tokens_BT": tokens_2BT[0] * (np.arange(width) <= ends_2B[0][:, None]),
            "rejected_tokens_BT": tokens_2BT[1] * (np.arange(width) <= ends_2B[1][:, None]),
            "start_B": start_B,
            "chosen_end_B": ends_2B[0],
            "rejected_end_B": ends_2B[1],
            "source_B": rng.integers(0, 3, rows),
        }
        batch = {name: value.astype(np.int32) for name, value in batch.items()}
        weight_B = np.ones(rows, np.float32)
        weight_B[-1] = 0
        for name, value in batch.items():
            if name != "source_B":
                value[-1] = 0
        return batch | {"margin_B": rng.uniform(0, 2, rows).astype(np.float32) * weight_B, "weight_B": weight_B}

    return build


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> dict[str, str]:
    """Environment of a child with one device and a compilation cache that all children share."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    return environment | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }


@pytest.fixture(scope="session")
def whole(compiled, tmp_path_factory) -> Path:
    """The run that every other is compared with: 12 steps without interruption. It also writes the data."""
    from tests.runs import finish, start

    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(folder, folder, compiled))
    return folder
