"""Trains a SentencePiece vocabulary on any sources: as a gin file says, or on equal bytes of the named ones.

python -m tools.train_tokenizer --gin_file=gin/tokenizers/hcxjax-100k.gin --gin.DATA_DIR=texts --gin.OUTPUT=tokenizer
python -m tools.train_tokenizer --input 'jsonl:korean/*.jsonl.gz' files:src --size 32000 --output tokenizer
"""

import argparse
import json
import logging
import os
import sys
import tempfile

from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import CARD_FILE, MODEL_FILE, Tokenizer
from hcxjax.data.tokenizer_job import TrainTokenizer
from hcxjax.text.vocabulary import Vocabulary


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="tools/train_tokenizer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    by_gin = arguments.add_argument_group("as a gin file says (mixtures, rates, every setting of Tokenizer)")
    by_gin.add_argument(
        "--gin_file", action="append", default=[], metavar="FILE", help="see gin/tokenizers; repeatable"
    )
    by_gin.add_argument("--gin.NAME=value", dest="_", help="a binding that overrides the files; repeatable")
    by_flags = arguments.add_argument_group("as these flags say")
    by_flags.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="jsonl:PATH_OR_GLOB, parquet:PATH_OR_GLOB, text:FOLDER, files:FOLDER, tfds:NAME, or a registered seqio "
        "Task or Mixture",
    )
    by_flags.add_argument("--output", metavar="DIR", help="folder to make; holds tokenizer.model and .json")
    by_flags.add_argument("--size", type=int, default=Tokenizer.size, help="entries (default: %(default)s)")
    by_flags.add_argument(
        "--reserved", type=int, default=Tokenizer.reserved, help="control pieces kept free (default: %(default)s)"
    )
    by_flags.add_argument(
        "--sample_bytes", type=int, default=Tokenizer.sample_bytes, help="bytes of text to read (default: %(default)s)"
    )
    by_flags.add_argument("--no_morphemes", action="store_true", help="let merges run across Korean morphemes")
    by_flags.add_argument(
        "--processes", type=int, default=Tokenizer.processes, help="that analyse morphemes (default: %(default)s)"
    )
    by_flags.add_argument(
        "--task_modules",
        nargs="*",
        default=["tasks.pretrain"],
        help="modules that register Tasks (default: %(default)s)",
    )
    return arguments


def job_of(options: argparse.Namespace, bindings: list[str], work: str) -> TrainTokenizer:
    """The training that the command line asks for.

    Args:
      bindings: gin bindings, without their dashes.
      work: folder for what is read on the way.
    Raises:
      ValueError: neither or both of --gin_file and --input, or settings that cannot be.
    """
    if bool(options.gin_file) == bool(options.input):
        raise ValueError("give either --gin_file, or --input with --output")
    if options.gin_file:
        from hcxjax.main import configure

        job, _ = configure(options.gin_file, bindings)
        if not isinstance(job, TrainTokenizer):
            raise ValueError(f"main.job of {', '.join(options.gin_file)} must be @TrainTokenizer()")
        return job
    if not options.output:
        raise ValueError("--input needs --output, the folder to make")
    tokenizer = Tokenizer(
        size=options.size,
        reserved=options.reserved,
        morphemes=not options.no_morphemes,
        sample_bytes=options.sample_bytes,
        processes=options.processes,
    )
    sources = {f"input_{number}": source for number, source in enumerate(options.input)}
    corpus = Corpus(sources, tokenizer, directory=work, task_modules=tuple(options.task_modules))
    return TrainTokenizer(corpus, options.output)


def main(argv: list[str] | None = None) -> int:
    """Trains and prints where the vocabulary lies; 1 where the settings are wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    bindings = [argument.removeprefix("--gin.") for argument in arguments if argument.startswith("--gin.")]
    options = parser().parse_args([argument for argument in arguments if not argument.startswith("--gin.")])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with tempfile.TemporaryDirectory() as work:
            job = job_of(options, bindings, work)
            job.run()
    except (ValueError, OSError) as error:
        print(f"train_tokenizer: {error}", file=sys.stderr)
        return 1
    with open(os.path.join(job.output, CARD_FILE), encoding="utf-8") as file:
        trained_on = json.load(file)["trained_on"]
    vocabulary = Vocabulary(os.path.join(job.output, MODEL_FILE))
    print(f"{vocabulary.path}: {vocabulary.size} entries, trained on {trained_on['bytes']:,} bytes")
    print(f"sha256 {vocabulary.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
