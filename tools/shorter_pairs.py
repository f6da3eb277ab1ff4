"""Comparisons against length, out of what PPO wrote: of two answers that are worth the same, the shorter is preferred.

python -m tools.shorter_pairs runs/ppo --output shorter.jsonl

Two answers to the same prompt, of whatever rollouts, are compared where both ended by themselves, their scores differ
by at most --tolerance of the deviation of all scores, and their lengths by at least --least_difference tokens. Each
pair is a line {prompt, chosen, rejected, margin: 0}: another source for the next reward model ('jsonl:shorter.jsonl').

Only what was written down can be compared: set Rollouts.logged to EPISODES for all of it, and have fewer prompts than
answers, so that prompts come again.

Source: HyperCLOVA X, arXiv:2404.01954, on answers that grow in PPO: feedback on needlessly long ones, again and again.
Its form is not disclosed; this one is our own.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.rollout_files import Episode, Written


class Rule(NamedTuple):
    """Which answers are compared.

    Attributes:
      tolerance: largest difference of two scores, in deviations of all scores.
      least_difference: smallest difference of two lengths, in tokens.
      most: comparisons of a prompt, those nearest in score first.
    """

    tolerance: float
    least_difference: int
    most: int

    def check(self) -> None:
        """ValueError where a field cannot be."""
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance is {self.tolerance}; it must not be negative")
        for name in ("least_difference", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")


class Found(NamedTuple):
    """Comparisons, and what there was.

    Attributes:
      pairs: as lines of the file.
      answers, prompts: that were read.
      left_out: answers, by the reason.
      apart: pairs of the others that are not compared, by the reason.
    """

    pairs: Sequence[Mapping[str, Any]]
    answers: int
    prompts: int
    left_out: Counter[str]
    apart: Counter[str]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.shorter_pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("run", type=Path, metavar="RUN_DIR", help="of a run of PPO")
    arguments.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    arguments.add_argument(
        "--tolerance", type=float, default=0.1, help="of the scores' standard deviation (default: %(default)s)"
    )
    arguments.add_argument(
        "--least_difference", type=int, default=4, metavar="TOKENS", help="of the two lengths (default: %(default)s)"
    )
    arguments.add_argument(
        "--most",
        type=int,
        default=8,
        metavar="N",
        help="pairs of a prompt, nearest in score first (default: %(default)s)",
    )
    return arguments


def shorter_pairs(episodes: Sequence[Episode], rule: Rule) -> Found:
    """All comparisons that `rule` allows.

    Raises:
      ValueError: the episodes do not say what was asked, or whether answers stopped.
    """
    if any(not episode.messages or episode.stopped is None for episode in episodes):
        raise ValueError("the rollouts do not say what was asked: they were written down by an earlier version")
    left_out, apart, pairs = Counter[str](), Counter[str](), []
    asked: dict[str, dict[str, Episode]] = {}
    for episode in episodes:
        answers = asked.setdefault(json.dumps(episode.messages, ensure_ascii=False, sort_keys=True), {})
        if not episode.stopped:
            left_out["did not end"] += 1
        elif not episode.answer.strip():
            left_out["empty"] += 1
        elif episode.answer in answers:
            left_out["said before"] += 1
        else:
            answers[episode.answer] = episode
    most_apart = rule.tolerance * statistics.pstdev(episode.score for episode in episodes)
    for answers in asked.values():
        alike = sorted(_alike(list(answers.values()), rule, most_apart, apart), key=_nearness)
        apart[f"more than {rule.most} of a prompt"] += max(0, len(alike) - rule.most)
        pairs += [_line(*pair) for pair in alike[: rule.most]]
    return Found(pairs, len(episodes), len(asked), left_out, +apart)


def _alike(
    answers: Sequence[Episode], rule: Rule, most_apart: float, apart: Counter[str]
) -> Iterator[tuple[Episode, Episode]]:
    """(shorter, longer) of the pairs that `rule` allows; counts the others."""
    for one, two in itertools.combinations(answers, 2):
        if abs(one.score - two.score) > most_apart:
            apart["scores differ"] += 1
        elif abs(one.length - two.length) < rule.least_difference:
            apart["about as long"] += 1
        else:
            yield (one, two) if one.length < two.length else (two, one)


def _nearness(pair: tuple[Episode, Episode]) -> tuple[float, int]:
    shorter, longer = pair
    return abs(shorter.score - longer.score), shorter.length - longer.length


def _line(shorter: Episode, longer: Episode) -> dict[str, Any]:
    """A comparison. Messages, and no text: a request that looks like a transcript would be read as one."""
    return {"prompt": shorter.messages, "chosen": shorter.answer, "rejected": longer.answer, "margin": 0.0}


def report(found: Found, output: Path) -> Iterator[str]:
    """What was made, and of what."""
    answers = [f"{count:,} {reason}" for reason, count in found.left_out.most_common()]
    others = [f"{count:,} {reason}" for reason, count in found.apart.most_common()]
    yield f"{found.answers:,} answers to {found.prompts:,} prompts; left out: {', '.join(answers) or 'none'}"
    yield f"pairs that are not compared: {', '.join(others) or 'none'}"
    if found.pairs:
        prompts = len({json.dumps(pair["prompt"]) for pair in found.pairs})
        yield f"{output}: {len(found.pairs):,} pairs of {prompts:,} prompts"


def write(pairs: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Writes the file, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    os.replace(partial, output)


def main(argv: list[str] | None = None) -> int:
    """Writes the pairs and tells what was left out; 1 where something is wrong or there is no pair."""
    options = parser().parse_args(argv)
    rule = Rule(options.tolerance, options.least_difference, options.most)
    try:
        rule.check()
        episodes = [one for update in Written.read(options.run).rollouts.values() for one in update]
        found = shorter_pairs(episodes, rule)
        print("\n".join(report(found, options.output)))
        if not found.pairs:
            raise ValueError(
                "there is no pair: write more down (Rollouts.logged), let prompts come again, or raise --tolerance"
            )
        write(found.pairs, options.output)
    except (ValueError, OSError) as error:
        print(f"shorter_pairs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
