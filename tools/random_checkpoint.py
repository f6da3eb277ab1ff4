"""Writes a Hugging Face checkpoint of random weights and any shape, with a small tokenizer: to try and to measure with.

python -m tools.random_checkpoint /tmp/seed_0.5b
python -m tools.random_checkpoint /tmp/tiny --shape num_layers=2 embed_dim=64 vocab_size=512 --dtype float32

Shapes are those of HyperCLOVAX-SEED-Text-Instruct-0.5B unless said otherwise.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hcxjax.convert.config import hugging_face_config
from hcxjax.convert.model import block_shape
from hcxjax.convert.names import Weight, weights
from hcxjax.convert.safetensors_folder import Tensor, write_tensors
from hcxjax.convert.whole_folder import check_space, whole_folder
from hcxjax.models.config import DecoderConfig
from hcxjax.text.templates import SEED

SEED_05B = DecoderConfig(
    vocab_size=110592,
    num_layers=24,
    embed_dim=1024,
    mlp_dim=4096,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    max_length=8192,
    rope_theta=500_000.0,
)
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SPECIALS = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|im_start|>": 100272,
    "<|im_end|>": 100273,
    "<|stop|>": 100274,
    "<|endofturn|>": 100275,
}
"""SEED's specials and their ids; in smaller vocabularies they follow the bytes."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.random_checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("out", metavar="OUT", help="folder to make; must not exist")
    arguments.add_argument("--shape", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of DecoderConfig")
    arguments.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="(default: %(default)s)")
    arguments.add_argument("--max_shard_mb", type=int, default=4000, help="(default: %(default)s)")
    arguments.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return arguments


def write_checkpoint(
    out: str | Path, config: DecoderConfig, *, dtype: str = "bfloat16", max_shard_mb: int = 4000, seed: int = 0
) -> None:
    """Writes the folder `out`: norms near 1, other weights of standard deviation init_std, drawn tensor by tensor."""
    out = Path(out)
    tensors = list(_tensors(config, DTYPES[dtype], seed))
    check_space(out, sum(tensor.nbytes for tensor in tensors))
    tokenizer, ids = byte_tokenizer(config.vocab_size)
    ends = [ids["<|endoftext|>"], ids["<|stop|>"], ids["<|endofturn|>"]]
    tokens = {"bos_token_id": ends[0], "eos_token_id": ends, "pad_token_id": ends[0]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endofturn|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    with whole_folder(out) as folder:
        write_tensors(folder, tensors, max_shard_mb * 10**6)
        files: dict[str, Any] = {
            "config.json": hugging_face_config(config, tokens, dtype),
            "generation_config.json": tokens,
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": settings,
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(SEED.jinja(), encoding="utf-8")


def byte_tokenizer(size: int) -> tuple[dict[str, Any], dict[str, int]]:
    """(tokenizer.json, {special: id}) of byte-level BPE without merges: every byte is a token."""
    if size < 256 + len(SPECIALS):
        raise ValueError(f"vocab_size is {size}; 256 bytes and {len(SPECIALS)} specials need {256 + len(SPECIALS)}")
    ids = SPECIALS if size > max(SPECIALS.values()) else {name: 256 + n for n, name in enumerate(SPECIALS)}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **plain, "special": True} for name, token in ids.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {**letters, **ids}, "merges": []},
    }
    return tokenizer, ids


def _tensors(config: DecoderConfig, dtype: str, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    for weight in weights(config):
        shape = weight.their_shape(config)
        for name in weight.tensors(config):
            yield Tensor(name, dtype, shape, _drawn(rng, weight, shape, config.init_std))


def _drawn(
    rng: np.random.Generator, weight: Weight, shape: tuple[int, ...], std: float
) -> Callable[[], Iterator[np.ndarray]]:
    def blocks() -> Iterator[np.ndarray]:
        step = block_shape(shape)[0]
        for start in range(0, shape[0], step):
            part = (min(step, shape[0] - start), *shape[1:])
            noise = rng.standard_normal(math.prod(part), np.float32).reshape(part)
            yield 1 + 0.1 * noise if "norm" in weight.path else std * noise

    return blocks


def shaped(fields: list[str]) -> DecoderConfig:
    """`SEED_05B` with fields given as NAME=VALUE; ValueError where there is no such field, or no such value."""
    known = {field.name for field in dataclasses.fields(DecoderConfig)}
    changes: dict[str, Any] = {}
    for field in fields:
        name, _, value = field.partition("=")
        if name not in known:
            raise ValueError(f"--shape has {field!r}; fields are {', '.join(sorted(known))}")
        try:
            changes[name] = json.loads(value.lower())
        except ValueError:
            raise ValueError(f"--shape has {field!r}, whose value is no number, true or false") from None
    return dataclasses.replace(SEED_05B, **changes)


def main(argv: list[str] | None = None) -> int:
    """Writes and says so; 1 where something is wrong."""
    options = parser().parse_args(argv)
    try:
        config = shaped(options.shape)
        write_checkpoint(options.out, config, dtype=options.dtype, max_shard_mb=options.max_shard_mb, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"random_checkpoint: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {config.parameters:,} random parameters in {options.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
