"""Compares vocabularies on texts: tokens by language and kind, words cut inside a morpheme, bytes, speed.

python -m tools.tokenizer_report --tokenizers ours=hcxjax-100k theirs=tokenizer.json gpt4=cl100k_base.js \\
    --texts ko/news=jsonl:news.jsonl.gz code/mine=files:src --relative_to gpt4 --output report
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from hcxjax.data.readers import Skips
from hcxjax.data.sources import open_source
from hcxjax.text.measures import Counts, hangul_words, measure, speeds
from hcxjax.text.morphemes import split_words
from hcxjax.text.pretrained import names, shipped
from hcxjax.text.tiktoken_ranks import TiktokenEngine
from hcxjax.text.vocabulary import Vocabulary

_RANKS = (".js", ".cjs", ".tiktoken")
_LONGEST = 50_000_000


@dataclasses.dataclass(frozen=True)
class Judged:
    """A vocabulary under its name in the table."""

    encoder: Vocabulary | TiktokenEngine
    pieces: Sequence[bytes]

    @classmethod
    def open(cls, path: str) -> "Judged":
        """A SentencePiece model, a tokenizer.json, a file of tiktoken ranks, or the name of a vocabulary that ships."""
        if not path.endswith(_RANKS):
            vocabulary = Vocabulary(shipped(path))
            names = {token: name for name, token in vocabulary.specials.items()}
            return cls(vocabulary, [b"" if i in names else vocabulary.token_bytes(i) for i in range(vocabulary.size)])
        if not os.path.isfile(path):
            raise ValueError(f"--tokenizers: there is no file {path!r}")
        engine = TiktokenEngine(path)
        return cls(engine, engine.pieces)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="tools/tokenizer_report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--tokenizers",
        nargs="+",
        required=True,
        metavar="NAME=PATH",
        help=f"SentencePiece model, tokenizer.json, tiktoken ranks ({', '.join(_RANKS)}), or one that ships: {names()}",
    )
    arguments.add_argument(
        "--texts",
        nargs="+",
        required=True,
        metavar="LANGUAGE/KIND=SOURCE",
        help="such as ko/law=jsonl:law.jsonl.gz or code/mine=files:src; a source as Corpus.sources has it",
    )
    arguments.add_argument("--relative_to", metavar="NAME", help="also give tokens relative to this tokenizer")
    arguments.add_argument("--documents", type=int, default=1000, help="of each text (default: %(default)s)")
    arguments.add_argument("--bytes", type=int, default=2_000_000, help="of each text (default: %(default)s)")
    arguments.add_argument("--rounds", type=int, default=5, help="of timing; 0: no speeds (default: %(default)s)")
    arguments.add_argument("--no_morphemes", action="store_true", help="do not judge words (needs python-mecab-ko)")
    arguments.add_argument("--output", metavar="DIR", help="write report.md, report.json and report.png here")
    return arguments


def read(source: str, most_documents: int, most_bytes: int) -> list[str]:
    """The first documents of a source."""
    texts, size = [], 0
    opened, skips = open_source(source, _LONGEST), Skips()
    stream: Iterator[str] = (
        document.text for part in range(opened.parts("train")) for document in opened.documents("train", part, skips)
    )
    for text in itertools.islice(stream, most_documents):
        texts.append(text)
        size += len(text.encode())
        if size >= most_bytes:
            break
    for reason, count in skips.counts.items():
        print(f"{source}: left out {count} x {reason} (first: {skips.examples[reason]})", file=sys.stderr)
    return texts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; all but the first column are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fewer(counts: Mapping[str, Mapping[str, Counts]], base: str | None) -> str:
    """Mean tokens a document, a text a column: the form of the HyperCLOVA X report's table 1 (arXiv:2404.01954)."""
    texts = list(next(iter(counts.values())))
    rows = []
    for name, by_text in counts.items():
        means = [by_text[text].tokens / max(1, by_text[text].documents) for text in texts]
        rows.append([name, *(f"{mean:,.2f}" for mean in means), f"{sum(means) / len(means):,.2f}"])
    out = "Mean tokens a document\n\n" + table(["tokenizer", *texts, "mean"], rows)
    if base is not None:
        rows = [
            [name, *(f"{by_text[text].tokens / max(1, counts[base][text].tokens):.3f}" for text in texts)]
            for name, by_text in counts.items()
        ]
        out += f"\n\nTokens relative to {base}\n\n" + table(["tokenizer", *texts], rows)
    return out


def by_language(counts: Mapping[str, Mapping[str, Counts]]) -> str:
    """Tokens per character and byte, fragments and words, a language a row."""
    rows = []
    for name, by_text in counts.items():
        languages: dict[str, Counts] = {}
        for text, found in by_text.items():
            language = text.partition("/")[0]
            languages[language] = languages.get(language, Counts()) + found
        for language, c in languages.items():
            per = [f"{c.tokens / max(1, c.characters):.3f}", f"{c.tokens / max(1, c.bytes):.3f}"]
            words = [f"{100 * a / b:.1f} %" if b else "-" for a, b in ((c.cut, c.words), (c.crossed, c.edges))]
            rows.append(
                [f"{name}, {language}", *per, f"{100 * c.fragments / max(1, c.tokens):.2f} %", *words, f"{c.lossy:,}"]
            )
    head = [
        "tokenizer, language",
        "tokens/character",
        "tokens/byte",
        "byte tokens",
        "words cut",
        "boundaries crossed",
        "not lossless",
    ]
    return (
        table(head, rows)
        + "\n\nWords cut: Hangul words with a token edge inside a morpheme. Boundaries crossed: those inside"
        "\nwords and inside a token. Byte tokens: tokens that are no whole characters."
        "\nNot lossless: documents that do not come back from their tokens; their words are not judged."
    )


def speed_table(timed: Mapping[str, tuple[float, float, float]]) -> str:
    """Megabytes a second, one thread each, measured in turns."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in timed.items()]
    return "MB/s, one thread\n\n" + table(["tokenizer", "encode, words new", "encode, words met", "decode"], rows)


def plot(counts: Mapping[str, Mapping[str, Counts]], path: str) -> None:
    """Bars of bytes a token, a text a group; needs matplotlib."""
    from matplotlib import pyplot

    texts = list(next(iter(counts.values())))
    figure, axes = pyplot.subplots(figsize=(2 + 1.1 * len(texts), 4), layout="constrained")
    width = 0.8 / len(counts)
    for number, (name, by_text) in enumerate(counts.items()):
        heights = [by_text[text].bytes / max(1, by_text[text].tokens) for text in texts]
        axes.bar([place + number * width for place in range(len(texts))], heights, width, label=name)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(texts))], texts, rotation=30, ha="right")
    axes.set_ylabel("bytes a token")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def pairs(entries: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE entries as a dictionary."""
    out = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value) or name in out:
            raise ValueError(f"{flag}: {entry!r} must be NAME=VALUE, each name once")
        out[name] = value
    return out


def report(options: argparse.Namespace) -> str:
    """The report as markdown; files under --output."""
    sources = pairs(options.texts, "--texts")
    judged = {name: Judged.open(path) for name, path in pairs(options.tokenizers, "--tokenizers").items()}
    if options.relative_to is not None and options.relative_to not in judged:
        raise ValueError(f"--relative_to {options.relative_to!r} is none of {', '.join(judged)}")
    texts = {name: read(source, options.documents, options.bytes) for name, source in sources.items()}
    words = [] if options.no_morphemes else hangul_words([text for group in texts.values() for text in group])
    morphemes = split_words(words) if words else {}
    counts: dict[str, dict[str, Counts]] = {name: {} for name in judged}
    with tqdm(total=len(judged) * len(texts), desc="measuring", leave=False) as bar:
        for text, name in itertools.product(texts, judged):
            counts[name][text] = measure(judged[name].encoder, judged[name].pieces, texts[text], morphemes)
            bar.update()
    parts = [fewer(counts, options.relative_to), by_language(counts)]
    if options.rounds:
        # Opened anew: measuring has filled what an encoder keeps of the words it met.
        fresh = {name: Judged.open(path) for name, path in pairs(options.tokenizers, "--tokenizers").items()}
        sample = [text for group in texts.values() for text in group]
        encoders = {name: one.encoder for name, one in fresh.items()}
        parts.append(speed_table(speeds(encoders, {n: one.pieces for n, one in fresh.items()}, sample, options.rounds)))
    markdown = "\n\n".join(parts)
    if options.output:
        os.makedirs(options.output, exist_ok=True)
        plain = {name: {text: dataclasses.asdict(c) for text, c in by_text.items()} for name, by_text in counts.items()}
        for file, content in (("report.md", markdown), ("report.json", json.dumps(plain, indent=1))):
            with open(os.path.join(options.output, file), "w", encoding="utf-8") as out:
                out.write(content + "\n")
        if importlib.util.find_spec("matplotlib"):
            plot(counts, os.path.join(options.output, "report.png"))
        else:
            print("no report.png: matplotlib is missing (pip install -e '.[plots]')", file=sys.stderr)
    return markdown


def main(argv: list[str] | None = None) -> int:
    """Prints the report; 1 where the settings are wrong."""
    options = parser().parse_args(argv)
    try:
        print(report(options))
    except (ValueError, OSError) as error:
        print(f"tokenizer_report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
