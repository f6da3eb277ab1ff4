"""Runs what a gin file names: `python -m hcxjax.main --gin_file=gin/runs/quickstart.gin [--gin.NAME=value ...]`."""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import jax

from hcxjax import peers
from hcxjax.checkpoint import CheckpointError, CheckpointTimeoutError, KeepPolicy
from hcxjax.checks import whole
from hcxjax.claims import bindings_of, claimed
from hcxjax.data.beam import Beam
from hcxjax.data.cleaning.duplicates import NearDuplicates
from hcxjax.data.cleaning.language import LetterShare, Mojibake
from hcxjax.data.cleaning.overlap import BenchmarkOverlap
from hcxjax.data.cleaning.personal import PersonalData
from hcxjax.data.cleaning.quality import Length, Lines, StopWords, Symbols, Words
from hcxjax.data.cleaning.repetition import Repetition
from hcxjax.data.cleaning.wordlists import Boilerplate, Classified, Wordlist
from hcxjax.data.comparisons import Comparisons, HeldOutComparisons
from hcxjax.data.conversations import Conversations, HeldOutConversations
from hcxjax.data.corpus import Corpus
from hcxjax.data.dialogues import Dialogues
from hcxjax.data.engine import Local
from hcxjax.data.held_out import HeldOut
from hcxjax.data.mixing import Balance
from hcxjax.data.packed import PackedTokens
from hcxjax.data.packing import Infilling
from hcxjax.data.preferences import Preferences
from hcxjax.data.prompts import Prompts
from hcxjax.data.rollouts.lessons import Lessons
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.data.tokenizer_job import TrainTokenizer
from hcxjax.evaluation.answer_loss import AnswerLoss
from hcxjax.evaluation.bits_per_byte import BitsPerByte
from hcxjax.evaluation.instructions import ConstrainedRequests, InstructionFollowing, WorldForms
from hcxjax.evaluation.known_reward import KnownRewardOfAnswers
from hcxjax.evaluation.pair_accuracy import PairAccuracy
from hcxjax.evaluation.probes import WorldProbes
from hcxjax.evaluation.reward_card import CalibrateReward
from hcxjax.evaluation.samples import Prompt, Samples
from hcxjax.inference.engine import EngineSettings
from hcxjax.inference.sampling import Sampling
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig, RopeScaling
from hcxjax.objectives.dpo import DPO
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.returns import AdaptiveKL
from hcxjax.objectives.reward_model import PairwiseReward
from hcxjax.optim import AdamW, Cosine, Linear, SpikeGuard, WarmupStableDecay
from hcxjax.peers import AGAIN, TimeLimits
from hcxjax.phases import Phase
from hcxjax.planning.guard import check_phases
from hcxjax.tracking import JsonLines, MLflow, ProgressBar, TensorBoard, quiet_libraries
from hcxjax.train import Experiment, TrainingError, Watch
from hcxjax.world import KnownReward, World

_log = logging.getLogger(__name__)

EPILOG = """\
Bindings: --gin.STEPS=200 sets the macro STEPS, --gin.AdamW.weight_decay=0.05 a field of any part. Macros that every
training run knows: RUN_DIR (its folder), STEPS, BATCH (rows an update; positions where conversations are read:
BATCH_TOKENS), SAVE_EVERY, EVAL_EVERY (updates), SEED, INIT_FROM (a run or an imported model to start from).
The same command goes on from the newest checkpoint in RUN_DIR. A run's own RUN_DIR/config.gin repeats it:
  python -m hcxjax.main --gin_file=runs/quickstart/config.gin --gin.RUN_DIR=runs/again

--cpu_devices N presents the CPU to jax as N devices, over which the mesh spreads; losses differ in their last bits.

Several processes: --distributed on TPU pods and SLURM, which tell jax all it needs; elsewhere also --coordinator,
--processes and --process. Where one of them dies, hangs or stops with an error, all end. python -m tools.launch starts
a run on all hosts and goes on with it after a failure.

Exit status: 0 the run is complete; 1 an error that the message explains; 2 wrong usage; 75 not complete, and the same
command goes on: saved on SIGTERM, or another process was lost.
"""


_ROOT = Path(__file__).resolve().parents[1]


class Job(Protocol):
    """What a run file names."""

    def run(self) -> bool:
        """True where it is complete."""
        ...


def started(job: Job, operative: str) -> bool:
    """Runs a job, a training run with its folder claimed and its mesh looked at; True where it is complete."""
    if isinstance(job, Experiment):
        check_phases(job.timeline, job.recipe, job.layout)
    with claimed(Path(job.run_dir), operative) if isinstance(job, Experiment) else contextlib.nullcontext():
        return job.run()


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs one after the other, each in a folder of its own.

    A run that is complete ends at once, one that was stopped goes on, so the same command goes on with the list.

    Attributes:
      folder: holds the folders of all.
      runs: in their order, of each its name, its run file, and bindings 'NAME=value', in which {folder} stands for
        `folder`, {start} for `start`, and {NAME} for what `given` has under it.
      start: a folder that the list begins from, such as a pretrained model's; "" where nothing asks for one.
      given: more that bindings may name, such as sources that a user brings.
      seed: SEED of all.
      bindings: more of all.
    """

    folder: str
    runs: Sequence[Sequence[str]]
    start: str = ""
    seed: int = 0
    bindings: Sequence[str] = ()
    given: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        whole(self, 0, "seed")
        names = [run[0] for run in self.runs]
        if not names or len(set(names)) < len(names) or any(len(run) < 2 for run in self.runs):
            raise ValueError(f"Runs.runs is {self.runs}; it must hold (name, run file, bindings...), names that differ")

    def run(self) -> bool:
        """Runs all that are not complete; False where SIGTERM ended one, and with it the list."""
        for name, file, *bindings in self.runs:
            place = Path(self.folder) / name
            _log.info("%s: %s in %s", name, file, place)
            common = [f"RUN_DIR={place}", f"SEED={self.seed}", *self.bindings]
            if not started(*configure([file], [*common, *map(self._filled, bindings)])):
                return False
        return True

    def _filled(self, binding: str) -> str:
        """A binding with what its {names} stand for; braces of dicts stay."""
        known = {"folder": self.folder, "start": self.start, **self.given}
        return re.sub(r"\{(\w+)\}", lambda found: str(known.get(found[1], found[0])), binding)


_PARTS: tuple[type, ...] = (
    AdamW,
    AdaptiveKL,
    AnswerLoss,
    Balance,
    Beam,
    BenchmarkOverlap,
    BitsPerByte,
    Boilerplate,
    CalibrateReward,
    Classified,
    Comparisons,
    ConstrainedRequests,
    Conversations,
    Corpus,
    Cosine,
    DecoderConfig,
    Dialogues,
    DPO,
    EngineSettings,
    Experiment,
    HeldOut,
    HeldOutComparisons,
    HeldOutConversations,
    Infilling,
    InstructionFollowing,
    JsonLines,
    KeepPolicy,
    KnownReward,
    KnownRewardOfAnswers,
    LanguageModel,
    Layout,
    Length,
    Lessons,
    LetterShare,
    Linear,
    Lines,
    Local,
    LoRA,
    MLflow,
    Mojibake,
    NearDuplicates,
    PackedTokens,
    PairAccuracy,
    PairwiseReward,
    PersonalData,
    Phase,
    PPO,
    Preferences,
    ProgressBar,
    Prompt,
    Prompts,
    Repetition,
    Rollouts,
    RopeScaling,
    Runs,
    Samples,
    Sampling,
    SpikeGuard,
    StopWords,
    Symbols,
    TensorBoard,
    TimeLimits,
    Tokenizer,
    TrainTokenizer,
    WarmupStableDecay,
    Watch,
    Wordlist,
    Words,
    World,
    WorldForms,
    WorldProbes,
)
"""What gin files may name, all of them plain classes that know nothing of gin. A run file may import more."""


def main_job(job: Job) -> Job:
    """The root of every configuration: `main.job = @Experiment()`."""
    return job


def configure(files: Sequence[str], bindings: Sequence[str] = ()) -> tuple[Job, str]:
    """(the job that the files name, the operative configuration that repeats it): gin is read here and nowhere else.

    Args:
      files: gin files, looked for from here and from the project's root.
      bindings: 'NAME=value' overrides; a value that is no gin literal is taken as a string.
    Raises:
      ValueError: a file is missing, a name is unknown (with the nearest known one), a hole is not filled, an override
        has no effect, or a value cannot be.
    """
    import gin

    gin.clear_config()
    gin.add_config_file_search_path(str(_ROOT))
    for part in _PARTS:
        gin.external_configurable(part, module="hcxjax")
    configured = gin.external_configurable(main_job, "main", module="hcxjax")
    try:
        gin.parse_config_files_and_bindings(list(files), None, finalize_config=False)
        in_files = gin.config_str()
        gin.parse_config([_binding(text) for text in bindings])
        gin.finalize()
        job = cast(Job, configured())
    except (ValueError, TypeError, RuntimeError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(_explained(error)) from error
    operative = gin.operative_config_str(max_line_length=118)
    _refuse_typos(in_files + gin.config_str(), operative, [text.partition("=")[0].strip() for text in bindings])
    return job, operative


def _refuse_typos(written: str, operative: str, overrides: Sequence[str]) -> None:
    """ValueError for a macro that nothing refers to, and for an override of a part that the run does not use.

    gin takes any macro name, so a typo would otherwise train something else for hours. Files may bind parts that a run
    does not use: they are shared; and an override may leave a file's macro without use.
    """
    used, macros = bindings_of(operative), [name for name in bindings_of(written) if re.fullmatch(r"\w+", name)]
    referred = set(re.findall(r"%(\w+)", written))
    for name in macros:
        if name not in referred:
            raise ValueError(f"{name} has no effect on this run{_nearest(name, referred)}")
    for name in overrides:
        if name not in used and name not in macros:
            raise ValueError(f"{name} has no effect on this run{_nearest(name, used)}")


def _binding(text: str) -> str:
    """`NAME = value`; a bare word or path becomes a string, because a shell eats quotes."""
    from gin.config import parse_value

    name, _, value = (part.strip() for part in text.partition("="))
    try:
        parse_value(value)
    except (SyntaxError, ValueError):
        value = repr(value)
    return f"{name} = {value}"


def _explained(error: Exception) -> str:
    """gin's message, with the nearest known name for an unknown one."""
    message = str(error)
    if macro := re.search(r"No bindings specified for '(\w+)/gin\.macro'", message):
        return f"{macro[1]} has no value: set it in the run file, or with --gin.{macro[1]}=VALUE"
    if unknown := re.search(r"No configurable matching reference '@([\w./]+)(?:\(\))?'", message):
        message += _nearest(re.split(r"[./]", unknown[1])[-1], [part.__name__ for part in _PARTS])
    elif unknown := re.search(r"No configurable matching '([\w./]+)'", message):
        message += _nearest(unknown[1].split(".")[-1], [part.__name__ for part in _PARTS])
    elif unknown := re.search(r"'?([\w.]+)'? doesn't have a parameter named '(\w+)'", message):
        owner = unknown[1].split(".")[-1]
        fields = [name for part in _PARTS if part.__name__ == owner for name in inspect.signature(part).parameters]
        message += _nearest(unknown[2], fields)
    elif hole := re.search(r"(\w+)\.__init__\(\) missing \d+ required positional arguments?: (.*)", message):
        message = f"{hole[1]} needs a value for {hole[2].splitlines()[0]}: bind {hole[1]}.NAME in the run file"
    return message.strip()


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 complete; 1 an error that its message explains; 2 wrong usage; 75 to be started again."""
    options, bindings = parse(sys.argv[1:] if arguments is None else arguments)
    # Forced, because libraries that were imported before have put handlers of their own.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    quiet_libraries()
    if options.cpu_devices:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    try:
        if options.distributed or options.coordinator:
            peers.join(options.coordinator, options.processes, options.process, options.heartbeat_s)
        complete = started(*configure(options.gin_file, bindings))
    except Exception as error:
        if options.traceback or not _explains_itself(error):
            traceback.print_exc()
        return peers.stop(AGAIN if _passes(error) else 1, str(error), isinstance(error, CheckpointTimeoutError))
    peers.leave()
    return 0 if complete else AGAIN


def _explains_itself(error: Exception) -> bool:
    """Does its message say what to change?"""
    return isinstance(error, ValueError | OSError | CheckpointError | TrainingError)


def _passes(error: Exception) -> bool:
    """May the same command go on? Where a collective fails, a device or another process does; memory stays as small."""
    own_fault = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
    return isinstance(error, CheckpointTimeoutError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own_fault)
    )


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options, bindings) of the command line; a mistake in it ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m hcxjax.main",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a run file; may be repeated")
    parser.add_argument("--gin.NAME=value", dest="_", help="a binding that overrides the files; may be repeated")
    parser.add_argument("--distributed", action="store_true", help="start jax.distributed, detecting the cluster")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    parser.add_argument(
        "--heartbeat_s",
        type=int,
        default=100,
        metavar="S",
        help="a process that was not heard of for S seconds is lost, and all end (default: 100)",
    )
    parser.add_argument("--cpu_devices", type=int, metavar="N", help="present the CPU to jax as N devices")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    bindings = [argument for argument in arguments if argument.startswith("--gin.")]
    options = parser.parse_args([argument for argument in arguments if argument not in bindings])
    if options.cpu_devices is not None and options.cpu_devices < 1:
        parser.error(f"--cpu_devices is {options.cpu_devices}; it must be at least 1")
    if options.heartbeat_s < 1:
        parser.error(f"--heartbeat_s is {options.heartbeat_s}; it must be at least 1")
    if not options.gin_file:
        parser.error("name a run: --gin_file=gin/runs/quickstart.gin")
    if (options.processes is not None or options.process is not None) and not options.coordinator:
        parser.error("--processes and --process need --coordinator=HOST:PORT, the address of process 0")
    for binding in bindings:
        if "=" not in binding:
            parser.error(f"{binding} has no value: write --gin.NAME=value")
    return options, [binding.removeprefix("--gin.") for binding in bindings]


if __name__ == "__main__":
    sys.exit(main())
