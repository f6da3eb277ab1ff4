"""Shows what a run of PPO wrote in its rollouts, and how it was judged; also while the run is going on.

python -m tools.show_rollouts --run runs/ppo                        in short: curves, prompts that came again, extremes
python -m tools.show_rollouts --run runs/ppo --update 40 --sort kl  a rollout's episodes, the most KL first
python -m tools.show_rollouts --run runs/ppo --html page.html       one page with all of it
python -m tools.show_rollouts --run runs/ppo --picture curves.png   curves over the run (needs the extra `plots`)

A rollout is numbered as the update that it was dealt to, from 0; RUN_DIR/rollouts holds `Rollouts.logged` episodes of
each. Score is what the reward model's card makes of an answer, KL is in nats an answer, repetition the share of
4-grams that are not the first of their kind, length in tokens.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.rollout_files import CURVES, SORTS, Episode, Written
from tools.rollout_page import page

_CUT = 600
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "␡"}
"""Control characters as pictures: an answer must not move a terminal's cursor."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.show_rollouts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--run", type=Path, required=True, metavar="DIR", help="RUN_DIR of a run of PPO")
    arguments.add_argument("--update", type=int, metavar="N", help="the episodes of this rollout (alone: by score)")
    arguments.add_argument("--sort", choices=SORTS, help="the most first (alone: of the last rollout)")
    arguments.add_argument("--least", action="store_true", help="with --update or --sort: the least first")
    arguments.add_argument("--count", type=int, default=4, help="episodes, or prompts, shown (default: %(default)s)")
    arguments.add_argument("--source", metavar="NAME", help="only episodes whose prompts are of this source")
    arguments.add_argument(
        "--cut", type=int, default=_CUT, metavar="CHARACTERS", help="of a text at most; 0: whole (default: %(default)s)"
    )
    arguments.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    arguments.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the curves")
    return arguments


def overview(written: Written, count: int, cut: int) -> Iterator[str]:
    """The run in short: numbers, prompts that came again, and the extremes of the last rollout."""
    updates = list(written.rollouts)
    yield f"{written.run}: {len(updates)} rollouts are written down, updates {updates[0]} to {updates[-1]}"
    yield from numbers(written)
    if again := written.recurring(count):
        yield "\n═══ prompts that came again ═══"
    for answers in again:
        yield "\n" + _asked(answers[0], cut)
        for episode in answers:
            yield from _answered(episode, f"update {episode.update}", cut)
    last = written.rollouts[updates[-1]]
    yield f"\n═══ update {updates[-1]}, the last ═══"
    for name, episode in extremes(last):
        yield "\n" + _asked(episode, cut)
        yield from _answered(episode, name, cut)


def numbers(written: Written) -> Iterator[str]:
    """A table of the run's metrics at the first, the middle and the last update."""
    if not written.curves:
        yield "metrics.jsonl tells nothing of rollouts yet"
        return
    told = [update for update, _ in written.curves["score"]]
    chosen = sorted({told[0], told[(len(told) - 1) // 2], told[-1]})
    yield f"\n{'update':<20}" + "".join(f"{update:>12,}" for update in chosen)
    for title in CURVES:
        known = dict(written.curves.get(title, []))
        cells = (f"{known[update]:>12.4g}" if update in known else f"{'':>12}" for update in chosen)
        yield f"{title:<20}" + "".join(cells)


def extremes(episodes: Sequence[Episode]) -> list[tuple[str, Episode]]:
    """(what it is, episode): the best, the worst, the longest, the most repetitive; one that is several, once."""
    if not episodes:
        return []
    found: dict[int, list[str]] = {}
    for name, field, sign in (
        ("best", "score", 1),
        ("worst", "score", -1),
        ("longest", "length", 1),
        ("most repetitive", "repetition", 1),
    ):
        place = max(range(len(episodes)), key=lambda row: sign * getattr(episodes[row], field))
        if field != "repetition" or episodes[place].repetition > 0:
            found.setdefault(place, []).append(name)
    return [(", ".join(names), episodes[place]) for place, names in found.items()]


def listing(episodes: Sequence[Episode], sort: str, least: bool, count: int, cut: int) -> Iterator[str]:
    """Episodes one after the other, the most, or the least, of a field first."""
    shown = sorted(episodes, key=lambda episode: getattr(episode, sort), reverse=not least)[:count]
    yield f"{len(shown)} of {len(episodes)} episodes, the {'least' if least else 'most'} {sort} first"
    for place, episode in enumerate(shown, 1):
        yield "\n" + _asked(episode, cut)
        yield from _answered(episode, str(place), cut)


def _asked(episode: Episode, cut: int) -> str:
    return f"── prompt {episode.number} of {episode.source} ──\n{_shown(episode.prompt, cut)}"


def _answered(episode: Episode, name: str, cut: int) -> Iterator[str]:
    stale = f", written before update {episode.version}" if episode.version != episode.update else ""
    yield (
        f"  {name}: score {episode.score:.3f}, KL {episode.kl:.3f}, repetition {episode.repetition:.2f}, "
        f"{episode.length} tokens{stale}"
    )
    yield "".join(f"  │ {line}\n" for line in _shown(episode.answer, cut).split("\n")).rstrip("\n")


def _shown(text: str, cut: int) -> str:
    left = len(text) - cut
    text = text[:cut] + f"… ({left:,} characters more)" if cut and left > 0 else text
    return text.translate(_VISIBLE)


def draw(written: Written, output: Path) -> None:
    """A panel a curve.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: the run has told nothing.
    """
    if not written.curves:
        raise ValueError(f"{written.run}/metrics.jsonl tells nothing of rollouts yet: there is no curve to draw")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(12, 8), layout="constrained", sharex=True)
    for axis, title in zip(axes.flat, CURVES, strict=True):
        if title in written.curves:
            axis.plot(*zip(*written.curves[title], strict=True), linewidth=0.9)
        axis.set(title=title)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set(xlabel="update")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Prints, or writes what is asked for; 1 where something is wrong."""
    options = parser().parse_args(argv)
    try:
        _show(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"show_rollouts: {error}", file=sys.stderr)
        return 1
    return 0


def _show(options: argparse.Namespace) -> None:
    if options.count < 1:
        raise ValueError(f"--count is {options.count}; it must be at least 1")
    written = Written.read(options.run, options.source)
    if options.picture:
        draw(written, options.picture)
        print(options.picture)
    if options.html:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(page(written), encoding="utf-8")
        print(options.html)
    if options.picture or options.html:
        return
    if options.update is None and options.sort is None:
        print("\n".join(overview(written, options.count, options.cut)))
        return
    update = list(written.rollouts)[-1] if options.update is None else options.update
    episodes = written.episodes(update)
    print(f"{written.run}, update {update}")
    print("\n".join(listing(episodes, options.sort or "score", options.least, options.count, options.cut)))


if __name__ == "__main__":
    sys.exit(main())
