"""Trains a SentencePiece vocabulary on any sources, equal bytes of each.

python -m tools.train_tokenizer --input 'jsonl:korean/*.jsonl.gz' files:src --size 32000 --output tokenizer
"""

import argparse
import json
import logging
import os
import sys

from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="tools/train_tokenizer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="jsonl:PATH_OR_GLOB, text:FOLDER, files:FOLDER, tfds:NAME, or the name of a registered seqio Task",
    )
    arguments.add_argument(
        "--output", required=True, metavar="DIR", help="folder to make; holds tokenizer.model and .json"
    )
    arguments.add_argument("--size", type=int, default=Tokenizer.size, help="entries (default: %(default)s)")
    arguments.add_argument(
        "--reserved", type=int, default=Tokenizer.reserved, help="control pieces kept free (default: %(default)s)"
    )
    arguments.add_argument(
        "--sample_bytes", type=int, default=Tokenizer.sample_bytes, help="bytes of text to read (default: %(default)s)"
    )
    arguments.add_argument("--no_morphemes", action="store_true", help="let merges run across Korean morphemes")
    arguments.add_argument(
        "--task_modules",
        nargs="*",
        default=["tasks.pretrain"],
        help="modules that register Tasks (default: %(default)s)",
    )
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Trains and prints where the vocabulary lies; 1 where the settings are wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = Tokenizer(
        size=options.size,
        reserved=options.reserved,
        morphemes=not options.no_morphemes,
        sample_bytes=options.sample_bytes,
    )
    sources = {f"input_{number}": source for number, source in enumerate(options.input)}
    corpus = Corpus(sources, tokenizer, directory=options.output, task_modules=tuple(options.task_modules))
    try:
        corpus.check()
        vocabulary = tokenizer.load(options.output, corpus.sample)
    except ValueError as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return 1
    with open(os.path.join(options.output, "tokenizer.json"), encoding="utf-8") as file:
        trained_on = json.load(file)["trained_on"]
    print(f"{vocabulary.path}: {vocabulary.size} entries, trained on {trained_on['bytes']:,} bytes")
    print(f"sha256 {vocabulary.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
