"""Opens what the tools write with: a run, a model folder that was imported, or a folder as Hugging Face lays it out."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from hcxjax.checkpoint import read
from hcxjax.inference.engine import EngineSettings
from hcxjax.inference.sampling import Sampling
from hcxjax.main import configure
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.int8 import in_dtype, quantized
from hcxjax.objectives.lora import LoRA, Writes
from hcxjax.partition import by_path, joined
from hcxjax.protocols import Objective, Params, PyTree
from hcxjax.text.templates import SEED, TEMPLATES, THINK, Template, template_for, template_named
from hcxjax.text.vocabulary import END_OF_TEXT, Vocabulary
from hcxjax.train import Experiment
from hcxjax.update import abstract_state

_KINDS = (
    "name the RUN_DIR of a training run, a folder that tools/import_hf.py wrote, or one with config.json and "
    "*.safetensors"
)
_IDS_FILES = ("generation_config.json", "config.json")
_DTYPES = ("float32", "bfloat16", "float16")
_LONGEST = 4096


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model that can write.

    Attributes:
      model: its sizes.
      params: on the devices that are here, whatever it was trained on.
      vocabulary: its own.
      layout: of the params; the engine runs inside `layout.active()`.
      template: the chat form that fits it, or None.
      name: of the folder.
      step: the checkpoint that was read; 0 for weights that came from elsewhere.
      begin: ids that stand before a text; none where the model was trained without.
      ends: ids that end a text.
    """

    model: DecoderConfig
    params: Params
    vocabulary: Vocabulary
    layout: Layout
    template: Template | None
    name: str
    step: int
    begin: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def text_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(begin, ends).

        Raises:
          ValueError: the model has neither.
        """
        if not self.begin and not self.ends:
            raise ValueError(
                f"{self.vocabulary.path} has no {END_OF_TEXT}, and no bos_token_id or eos_token_id is in "
                f"{' or '.join(_IDS_FILES)}: write there which ids begin and end a text"
            )
        return self.begin, self.ends


def open_model(path: str | Path, step: int | None = None, dtype: str | None = None) -> OpenModel:
    """The model in a folder.

    Args:
      path: a run's RUN_DIR, a model folder, or a Hugging Face folder.
      step: which checkpoint of a run; None is the newest.
      dtype: what matmuls are computed in; None is float32 on a CPU, where bfloat16 is emulated and slower, and the
        model's own elsewhere.
    Raises:
      ValueError: nothing of the kind is there, or its parts do not fit each other.
      CheckpointError: the checkpoint is damaged.
    """
    folder = Path(path)
    layout = Layout()
    if (folder / "config.gin").is_file():
        found = _open_run(folder, layout, step)
    elif (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        found = _open_imported(folder, layout, step)
    elif (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        found = _open_hugging_face(folder, layout, step)
    else:
        raise ValueError(f"{folder} has no config.gin, and no config.json with weights beside it: {_KINDS}")
    model, params, vocabulary, step, template = found
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    model = dataclasses.replace(model, dtype=dtype or model.dtype)
    template = template or template_for(vocabulary)
    begin, ends = _text_ids(folder, vocabulary, model.vocab_size)
    return OpenModel(model, params, vocabulary, layout, template, folder.resolve().name, step, begin, ends)


_Opened = tuple[DecoderConfig, Params, Vocabulary, int, Template | None]
"""What is in a folder, and the template that it names or its architecture means; None where its specials tell."""


@runtime_checkable
class KnowsVocabulary(Protocol):
    """A source of token batches, be they of documents or of conversations."""

    def vocabulary(self, known: int) -> Vocabulary:
        """The one that the run was trained with."""
        ...


def _open_run(run: Path, layout: Layout, step: int | None) -> _Opened:
    config = run / "config.gin"
    experiment, _ = configure([str(config)], [f"RUN_DIR={run}"])
    if not isinstance(experiment, Experiment) or not isinstance(_adapted(experiment.objective), Writes):
        raise ValueError(f"{config} does not train a language model")
    if not isinstance(experiment.source, KnowsVocabulary):
        raise ValueError(f"{config}: its source, {type(experiment.source).__name__}, keeps no vocabulary")
    phases = experiment.timeline
    tokenizer = {"tokenizer": np.asarray(0)}
    source = {"phase_0": tokenizer} if experiment.phases else tokenizer
    step, params, state = _stored(experiment, layout, source, step)
    state = state["phase_0"] if experiment.phases else state
    objective: Any = phases.at(step).objective
    vocabulary = experiment.source.vocabulary(int(state["tokenizer"]))
    # A run over conversations, comparisons or prompts may name the form in which it has learnt them.
    named = getattr(owner_of(experiment.source), "template", None)
    return objective.model, objective.policy(params), vocabulary, step, template_named(named) if named else None


def owner_of(source: KnowsVocabulary) -> Any:
    """What a source reads: a corpus, dialogues, preferences or prompts; it names the tokenizer, and may name a form."""
    owners = (getattr(source, name, None) for name in ("dialogues", "preferences", "prompts", "corpus"))
    return next(owner for owner in owners if owner is not None)


def _adapted(objective: Objective) -> Objective:
    """What an adapter is trained for, or the objective as it is."""
    return objective.objective if isinstance(objective, LoRA) else objective


def _stored(experiment: Experiment, layout: Layout, source: PyTree, step: int | None) -> tuple[int, Params, PyTree]:
    """(step, all parameters, part of the source's state) of a run's checkpoint."""
    abstract = abstract_state(experiment.recipe(experiment.timeline.at(0)), layout)
    frozen, template = by_path(abstract.frozen), {"state": {"params": abstract.params}, "source": source}
    if frozen:
        template["progress"] = {"frozen": np.asarray(0, np.int64)}
    step, tree = read(Path(experiment.run_dir) / "checkpoints", template, step)
    params, warm_start = tree["state"]["params"], experiment.warm_start
    if warm_start is not None and frozen:
        params = joined(params, warm_start.read_again(abstract.whole, frozen, int(tree["progress"]["frozen"])))
    return step, params, tree["source"]


def _open_imported(folder: Path, layout: Layout, step: int | None) -> _Opened:
    from hcxjax.convert.config import decoder_config, read_config
    from hcxjax.convert.model import abstract_params

    model = decoder_config(read_config(folder))
    boxed = abstract_params(model)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(boxed),
        layout.param_shardings(boxed),
    )
    step, tree = read(folder / "checkpoints", {"state": {"params": abstract}}, step)
    vocabulary = _vocabulary(folder / "tokenizer")
    return model, tree["state"]["params"], vocabulary, step, _template(read_config(folder), vocabulary)


def _open_hugging_face(folder: Path, layout: Layout, step: int | None) -> _Opened:
    from hcxjax.convert.config import read_config
    from hcxjax.convert.model import load

    if step is not None:
        raise ValueError(f"--step is {step}; {folder} has no checkpoints to choose from, leave it out")
    model, params = load(folder, layout)
    vocabulary = _vocabulary(folder)
    return model, params, vocabulary, 0, _template(read_config(folder), vocabulary)


def _vocabulary(folder: Path) -> Vocabulary:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return Vocabulary(str(folder / name))
    raise ValueError(f"{folder} has no tokenizer.json and no tokenizer.model; copy the model's own there")


def _text_ids(folder: Path, vocabulary: Vocabulary, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that begin a text and that end one: `<|endoftext|>`, or what the files beside a checkpoint say."""
    if END_OF_TEXT in vocabulary.specials:
        return (vocabulary.end_of_text,), (vocabulary.end_of_text,)
    beside, contents = Path(vocabulary.path).parent, {}
    for file in (*(beside / name for name in _IDS_FILES), folder / "config.json"):
        if file.is_file():
            contents[file] = _object(file)
    return _ids(contents, "bos_token_id", rows), _ids(contents, "eos_token_id", rows)


def _object(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no object")
    inner = content.get("text_config")
    return {**content, **inner} if isinstance(inner, dict) else content


def _ids(contents: Mapping[Path, Mapping[str, Any]], name: str, rows: int) -> tuple[int, ...]:
    """What the first file that says something says."""
    for file, content in contents.items():
        if (found := content.get(name)) is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(one) is int and 0 <= one < rows for one in ids):
            raise ValueError(f"{file}: {name} is {found!r:.60}; it must be an id below {rows}, or a list of such")
        return tuple(dict.fromkeys(ids))
    return ()


def _template(config: Mapping[str, Any], vocabulary: Vocabulary) -> Template | None:
    # The reasoning model has the same specials as the others, but another architecture.
    reasons = config.get("model_type") == "hyperclovax" and template_for(vocabulary) is SEED
    return THINK if reasons else None


def add_model_arguments(arguments: argparse.ArgumentParser, slots: bool = True) -> None:
    """--model, --step, --dtype, --context, --int8, and --slots where more than one text is written."""
    arguments.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="RUN_DIR of a training run, a folder that tools/import_hf.py wrote, or a Hugging Face folder "
        "(config.json, *.safetensors, tokenizer.json)",
    )
    arguments.add_argument("--step", type=int, help="which checkpoint of a run (default: the newest)")
    arguments.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of the matmuls (default: float32 on a CPU, where bfloat16 is slow, and the model's own elsewhere)",
    )
    arguments.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="prompt and answer together; its memory is reserved for every slot (default: the model's, but at most "
        f"{_LONGEST})",
    )
    arguments.add_argument(
        "--int8",
        choices=("weights", "cache", "both"),
        help="round to int8, for a quarter of float32's memory: weights, the keys and values of texts, or both",
    )
    if slots:
        arguments.add_argument("--slots", type=int, default=8, help="texts written at once (default: %(default)s)")


def add_template_arguments(arguments: argparse.ArgumentParser) -> None:
    """--template and --think."""
    arguments.add_argument(
        "--template", choices=tuple(TEMPLATES), help="form of a conversation (default: the one that fits the model)"
    )
    arguments.add_argument(
        "--think",
        choices=("show", "hide", "off"),
        default="show",
        help="reasoning before an answer, where the template has it: shown, hidden, or none (default: %(default)s)",
    )


def add_sampling_arguments(arguments: argparse.ArgumentParser, new_tokens: int = 128) -> None:
    """How tokens are drawn, and when writing ends; `new_tokens` is the default."""
    arguments.add_argument(
        "--new_tokens", type=int, default=new_tokens, help="at most this many (default: %(default)s)"
    )
    arguments.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: %(default)s)")
    arguments.add_argument("--top_k", type=int, default=0, help="0 keeps all tokens (default: %(default)s)")
    arguments.add_argument("--top_p", type=float, default=1.0, help="(default: %(default)s)")
    arguments.add_argument(
        "--min_p", type=float, default=0.0, help="keep what has this share of the likeliest (default: %(default)s)"
    )
    arguments.add_argument(
        "--repetition_penalty", type=float, default=1.0, help="above 1 repeats less (default: %(default)s)"
    )
    arguments.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    arguments.add_argument(
        "--stop", action="append", type=int, default=[], metavar="ID", help="more token ids to stop at"
    )


def open_named(options: argparse.Namespace) -> OpenModel:
    """The model that the command line names."""
    opened = open_model(options.model, options.step, options.dtype)
    with opened.layout.active():
        rounded = options.int8 in ("weights", "both")
        params = quantized(opened.params) if rounded else in_dtype(opened.params, opened.model.dtype)
    return dataclasses.replace(opened, params=params)


def settings_of(options: argparse.Namespace, opened: OpenModel, **fields: int) -> EngineSettings:
    """The engine's, of which `fields` are set by the tool."""
    cache_dtype = "int8" if options.int8 in ("cache", "both") else None
    return EngineSettings(context=context_of(options, opened), cache_dtype=cache_dtype, **fields)


def sampling_of(options: argparse.Namespace) -> Sampling:
    """How the command line says that tokens are drawn."""
    return Sampling(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)})


def template_of(options: argparse.Namespace, opened: OpenModel) -> Template:
    """The template that the command line names, or else the one that fits the model.

    Raises:
      ValueError: none is named and none fits.
    """
    if options.template is not None:
        return template_named(options.template)
    if opened.template is None:
        names = ", ".join(TEMPLATES)
        raise ValueError(f"{opened.vocabulary.path} has the specials of no template; --template names one: {names}")
    return opened.template


def context_of(options: argparse.Namespace, opened: OpenModel) -> int:
    """Tokens that a slot holds.

    Raises:
      ValueError: more than the model's, or none.
    """
    longest = opened.model.max_length
    if options.context is None:
        return min(longest, _LONGEST)
    if not 1 <= options.context <= longest:
        raise ValueError(f"--context is {options.context}; it must be 1 to {longest}, the model's max_length")
    return options.context
