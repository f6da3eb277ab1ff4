"""What a user meets first: bindings, their mistakes, and the configuration that a run leaves behind."""

from pathlib import Path

import jax
import pytest

from hcxjax.checkpoint import CheckpointError, CheckpointTimeoutError
from hcxjax.claims import bindings_of, claim
from hcxjax.main import Runs, configure, main
from hcxjax.peers import AGAIN
from hcxjax.train import TrainingError

TINY = str(Path(__file__).parent / "tiny.gin")


def resolve(*bindings: str):
    return configure([TINY], [f"RUN_DIR={Path('/nowhere')}", *bindings])


def test_bindings_reach_the_parts_they_name():
    experiment, _ = resolve("STEPS=7", "AdamW.weight_decay=0.5", "SEED=3")
    assert experiment.steps == 7
    assert experiment.optimizer.schedule.steps == 7
    assert experiment.optimizer.weight_decay == 0.5
    assert experiment.seed == experiment.source.seed == 3


def test_a_bare_word_is_a_string():
    experiment, _ = configure([TINY], ["RUN_DIR=some/folder-1"])
    assert experiment.run_dir == "some/folder-1"


def test_operative_configuration_repeats_itself(tmp_path):
    experiment, text = resolve("STEPS=9")
    saved = tmp_path / "config.gin"
    saved.write_text(text)
    again, text_again = configure([str(saved)])
    assert bindings_of(text_again) == bindings_of(text)
    assert again.recipe(again.timeline.at(1)) == experiment.recipe(experiment.timeline.at(1))
    assert sorted(again.source.corpus.sources) == sorted(experiment.source.corpus.sources)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("STEP=5", r"STEP has no effect.*did you mean STEPS"),
        ("AdamW.weight_decai=0.1", r"weight_decai.*did you mean weight_decay"),
        ("AdamX.weight_decay=0.1", r"AdamX.*did you mean AdamW"),
        ("WarmupStableDecay.decay_share=0.2", r"WarmupStableDecay.decay_share has no effect"),
        ("DecoderConfig.num_kv_heads=3", r"num_heads is 2.*multiple of num_kv_heads, 3"),
        ("DecoderConfig.head_dim=15", r"head_dim is 15.*even"),
        ("DecoderConfig.dtype=float8", r"dtype is 'float8'.*bfloat16"),
        ("DecoderConfig.remat=some", r"remat is 'some'"),
        ("STEPS=0", r"Cosine.steps is 0; it must be a whole number of at least 1"),
        ("STEPS=1e3", r"steps is 1000.0; it must be a whole number"),
        ("STEPS=abc", r"steps is 'abc'; it must be a whole number"),
        ("SEED=a", r"seed is 'a'; it must be a whole number"),
        ("RUN_DIR=123", r"Experiment.run_dir is 123; it must name a folder"),
        ("LENGTH=64.0", r"PackedTokens.length is 64.0; it must be a whole number"),
        ("BATCH=abc", r"PackedTokens.batch is 'abc'; it must be a whole number"),
        ("LEARNING_RATE=fast", r"Cosine.peak is 'fast'; it must be a number"),
        ("SpikeGuard.memory=0", r"SpikeGuard.memory is 0"),
        ("LEARNING_RATE=-1.0", r"Cosine.peak is -1.0"),
        ("WARMUP=50", r"Cosine.warmup is 50.*between 0 and steps, 16"),
        ("AdamW.clip_norm=0", r"clip_norm is 0"),
        ("KeepPolicy.latest=0", r"KeepPolicy.latest is 0"),
    ],
)
def test_mistakes_name_the_value_and_the_field(binding, message):
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        resolve(binding)


def test_an_override_may_leave_a_macro_of_the_files_without_use():
    given = ["KOREAN=text:ko", "ENGLISH=text:en", "CODE=files:src"]
    experiment, _ = configure(["gin/runs/folders.gin"], [*given, "Corpus.cleaning=None", "Corpus.duplicates=None"])
    assert experiment.source.corpus.cleaning is None
    with pytest.raises(ValueError, match=r"KOREAN_CLEANSING has no effect on this run; did you mean KOREAN_CLEANING\?"):
        configure(["gin/runs/folders.gin"], [*given, "KOREAN_CLEANSING=()"])


def test_an_unfilled_hole_is_named(tmp_path):
    run = tmp_path / "run.gin"
    run.write_text(Path(TINY).read_text().replace("LENGTH = 64\n", ""))
    with pytest.raises(ValueError, match=r"^LENGTH has no value: set it in the run file, or with --gin.LENGTH=VALUE$"):
        configure([str(run)], ["RUN_DIR=x"])


def test_a_macro_without_use_is_a_typo(tmp_path):
    run = tmp_path / "run.gin"
    run.write_text(Path(TINY).read_text() + "INFIL_RATE = 0.9\n")
    with pytest.raises(ValueError, match=r"INFIL_RATE has no effect.*did you mean INFILL_RATE"):
        configure([str(run)], ["RUN_DIR=x"])


def test_an_unknown_reference_names_the_nearest(tmp_path):
    run = tmp_path / "run.gin"
    run.write_text(Path(TINY).read_text() + "Experiment.evaluators = (@BitsPerBite(),)\n")
    with pytest.raises(ValueError, match=r"(?s)BitsPerBite.*did you mean BitsPerByte"):
        configure([str(run)], ["RUN_DIR=x"])


def test_a_missing_required_field_is_named(tmp_path):
    run = tmp_path / "run.gin"
    run.write_text(Path(TINY).read_text().replace("DecoderConfig.num_layers = 2\n", ""))
    with pytest.raises(ValueError, match=r"DecoderConfig needs a value for .*num_layers"):
        configure([str(run)], ["RUN_DIR=x"])


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"no_such\.gin"):
        configure(["gin/runs/no_such.gin"])


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("RUN_DIR", "STEPS", "BATCH", "SAVE_EVERY", "EVAL_EVERY", "SEED", "--gin."))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--gin_file=x.gin", "--gin.STEPS"],
        ["--gin_fil=x.gin"],
        ["--gin_file=x.gin", "--process=1"],
        ["--gin_file=x.gin", "--cpu_devices=0"],
        ["--gin_file=x.gin", "--heartbeat_s=0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_errors_are_one_message_and_exit_1(capsys):
    assert main([f"--gin_file={TINY}", "--gin.RUN_DIR=x", "--gin.STEP=5"]) == 1
    assert capsys.readouterr().err.startswith("error: STEP has no effect")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("the loss is nan"), 1),
        (CheckpointError("the disk is full"), 1),
        (CheckpointTimeoutError("process 1 did not write its part"), AGAIN),
        (jax.errors.JaxRuntimeError("UNKNOWN: Connection closed by peer"), AGAIN),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1),
        (KeyError("a bug"), 1),
    ],
)
def test_the_exit_status_says_whether_a_new_start_helps(monkeypatch, capsys, error, status):
    def fail(*_):
        raise error

    left = []
    monkeypatch.setattr("hcxjax.main.started", fail)
    monkeypatch.setattr("hcxjax.peers.os._exit", left.append)
    assert main([f"--gin_file={TINY}", "--gin.RUN_DIR=x"]) == status
    told = capsys.readouterr().err
    assert f"error: {error}\n" in told
    explained = isinstance(error, TrainingError | CheckpointError)
    assert ("Traceback" in told) is not explained, "where the message does not explain, the place may"
    late = isinstance(error, CheckpointTimeoutError)
    assert left == ([AGAIN] if late else []), "a thread that hangs in a write would keep the process"


@pytest.mark.parametrize(("complete", "status"), [(True, 0), (False, AGAIN)])
def test_what_sigterm_ended_is_not_complete(monkeypatch, complete, status):
    monkeypatch.setattr("hcxjax.main.started", lambda *_: complete)
    assert main([f"--gin_file={TINY}", "--gin.RUN_DIR=x"]) == status


def test_processes_that_nobody_tells_of_each_other_say_what_is_missing(monkeypatch, capsys):
    given = {}

    def initialize(*arguments, **named):
        given.update(named)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    assert main([f"--gin_file={TINY}", "--gin.RUN_DIR=x", "--distributed", "--heartbeat_s=20"]) == 1
    assert "elsewhere name --coordinator=HOST:PORT of process 0, --processes and --process" in capsys.readouterr().err
    assert given["heartbeat_timeout_seconds"] > 20 * 2, "jax's own heartbeats come second"


def test_a_run_dir_of_another_run_is_refused(tmp_path):
    def claim_with(*bindings: str) -> None:
        with claim(tmp_path, configure(["gin/runs/quickstart.gin"], [f"RUN_DIR={tmp_path}", *bindings])[1]):
            pass

    claim_with("SEED=7")
    claim_with()  # nothing was trained with SEED=7
    (tmp_path / "metrics.jsonl").touch()
    claim_with("STEPS=5000", "SAVE_EVERY=5", "EVAL_EVERY=7")
    claim_with("Layout.fsdp=2", "ACCUMULATE=2")
    claim_with("Experiment.limits=@TimeLimits()", "TimeLimits.step_s=60")
    claim_with("Tokenizer.path=moved/tokenizer.model")  # its contents are compared when the run goes on
    with pytest.raises(ValueError, match=r"(?s)AdamW.b1: 0.9 there, 0.8 now.*SEED: 0 there, 1 now"):
        claim_with("SEED=1", "AdamW.b1=0.8")


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    _, operative = configure([TINY], [f"RUN_DIR={tmp_path}"])
    with claim(tmp_path, operative):
        second = claim(tmp_path, operative)
        with pytest.raises(ValueError, match="another process is training in RUN_DIR"):
            second.__enter__()
    with claim(tmp_path, operative):
        pass


@pytest.fixture
def started_runs(monkeypatch):
    """Names of the run files that were started, with their bindings, and which of them SIGTERM ends."""
    begun, ended = [], set()

    class Ran:
        def __init__(self, name):
            self.name = name

        def run(self):
            return self.name not in ended

    def configured(files, bindings):
        begun.append((files, bindings))
        return Ran(files[0]), ""

    monkeypatch.setattr("hcxjax.main.configure", configured)
    return begun, ended


def test_a_list_of_runs_is_run_in_order_each_in_its_folder(started_runs):
    begun, ended = started_runs
    listed = (("one", "a.gin", "INIT_FROM={start}"), ("two", "b.gin", "INIT_FROM={folder}/one"))
    runs = Runs("all", listed, start="base", seed=3, bindings=("STEPS=4",))
    assert runs.run()
    common = ["SEED=3", "STEPS=4"]
    assert begun == [
        (["a.gin"], ["RUN_DIR=all/one", *common, "INIT_FROM=base"]),
        (["b.gin"], ["RUN_DIR=all/two", *common, "INIT_FROM=all/one"]),
    ]
    ended.add("a.gin")
    begun.clear()
    assert not runs.run()
    assert len(begun) == 1, "nothing begins after a run that SIGTERM ended"


def test_a_list_of_runs_hands_on_what_it_is_given(started_runs):
    begun, _ = started_runs
    one = ("one", "a.gin", "SOURCES={chat}", "RATES={'ko': 1}", "INIT_FROM={start}{other}")
    assert Runs("all", (one,), start="base", given={"chat": {"ko": "jsonl:{start}"}}).run()
    assert begun[0][1][2:] == ["SOURCES={'ko': 'jsonl:{start}'}", "RATES={'ko': 1}", "INIT_FROM=base{other}"]


@pytest.mark.parametrize("runs", [(), (("one",),), (("one", "a.gin"), ("one", "b.gin"))])
def test_a_list_that_makes_no_sense(runs):
    with pytest.raises(ValueError, match=r"Runs\.runs is .*names that differ"):
        Runs("all", runs)
