"""Whole runs as a user starts them: killed, resumed, on other meshes, in several processes, on broken disks."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from hcxjax.peers import AGAIN
from tests.runs import (
    ROOT,
    TINY,
    assert_same_course,
    back_to,
    checkpoints,
    finish,
    losses,
    reached,
    start,
    together,
    wait_for,
)


def test_a_run_leaves_what_a_user_expects(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.gin", "metrics.jsonl", "checkpoints", "tokenizer", "tensorboard"} <= names
    assert list((whole / "tensorboard").glob("events.*"))
    assert list(losses(whole)) == list(range(1, 17))
    assert checkpoints(whole) == [4, 8, 12, 16]
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    expected = {"speed/tokens_per_s", "speed/goodput", "memory/peak_bytes", "train/grad_norm", "train/padding"}
    assert expected <= last.keys()
    assert 0 < last["speed/goodput"] <= 1


def test_two_runs_have_the_same_losses(whole, compiled, tmp_path):
    finish(start(tmp_path / "again", whole, compiled))
    assert losses(tmp_path / "again") == losses(whole)


def test_a_run_s_own_configuration_repeats_it(whole, compiled, tmp_path):
    command = [sys.executable, "-m", "hcxjax.main", f"--gin_file={whole / 'config.gin'}"]
    again = subprocess.run([*command, f"--gin.RUN_DIR={tmp_path / 'again'}"], env=compiled, cwd=ROOT, check=False)
    assert again.returncode == 0
    assert losses(tmp_path / "again") == losses(whole)


def test_killed_in_training_and_resumed(whole, compiled, tmp_path):
    run = tmp_path / "run"
    process = start(run, whole, compiled)
    wait_for(reached(run, 6), process)
    process.kill()
    process.wait()
    assert 16 not in checkpoints(run)
    finish(start(run, whole, compiled))
    assert losses(run) == losses(whole)


KILLED_IN_SAVE = """
import sys, time
from pathlib import Path
from hcxjax import checkpoint, main
seal = checkpoint.CheckpointFolder._seal
def stall(folder):
    seal(folder)
    if folder._pending == 8:
        Path(sys.argv.pop()).touch()
        time.sleep(600)
checkpoint.CheckpointFolder._seal = stall
main.main(sys.argv[1:-1])
"""


def test_killed_while_a_checkpoint_is_written(whole, compiled, tmp_path):
    run, mark = tmp_path / "run", tmp_path / "saving"
    arguments = [f"--gin_file={TINY}", f"--gin.RUN_DIR={run}", f"--gin.DATA_DIR={whole}", str(mark)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_IN_SAVE, *arguments], env=compiled, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_for(mark.exists, process)
    process.kill()
    process.wait()
    assert checkpoints(run) == [4], "the unfinished checkpoint must not look like a finished one"
    finish(start(run, whole, compiled))
    assert losses(run) == losses(whole)
    assert not list((run / "checkpoints").glob("*tmp*")), "what the killed run left behind is cleared away"


def test_sigterm_saves_and_exits_cleanly(whole, compiled, tmp_path):
    run = tmp_path / "run"
    process = start(run, whole, compiled, "SAVE_EVERY=100")
    wait_for(reached(run, 5), process)
    process.send_signal(signal.SIGTERM)
    messages = finish(process, expected=AGAIN)
    assert "SIGTERM" in messages
    (saved,) = checkpoints(run)
    assert 5 <= saved < 16
    finish(start(run, whole, compiled, "SAVE_EVERY=100"))
    assert losses(run) == losses(whole)


def test_a_longer_run_goes_on_and_another_run_is_refused(whole, compiled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    messages = finish(start(run, whole, compiled, "SEED=1"), expected=1)
    assert "SEED: 0 there, 1 now" in messages
    finish(start(run, whole, compiled, "STEPS=18"))
    assert list(losses(run)) == list(range(1, 19))


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(whole, compiled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = max((run / "checkpoints" / "16").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    messages = finish(start(run, whole, compiled))
    assert "checkpoint 16 is damaged" in messages
    assert "16.corrupt" in messages
    assert losses(run) == losses(whole)


def test_a_full_disk_is_told_and_loses_no_checkpoint(whole, compiled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)

    def no_room() -> None:
        # Files may not grow beyond this: writing a checkpoint fails in the middle, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    cached = compiled | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    messages = finish(start(run, whole, cached, "STEPS=20", preexec_fn=no_room), expected=1)
    assert "checkpoint 20 could not be written" in messages
    assert "steps [4, 8, 12, 16] are untouched" in messages
    finish(start(run, whole, compiled, "STEPS=20"))
    assert list(losses(run)) == list(range(1, 21))


def test_a_damaged_store_is_named(whole, compiled, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(whole / "store", data / "store")
    shutil.copytree(whole / "tokenizer", data / "tokenizer")
    victim = max((data / "store").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size - 1)
    messages = finish(start(tmp_path / "run", data, compiled), expected=1)
    assert victim.name in messages
    assert "delete" in messages


def test_another_mesh_has_the_same_order_and_losses(whole, compiled, tmp_path):
    """From one device to two stages of four, and back."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    back_to(run, 4)
    mesh = ("Layout.pipe=2", "Layout.fsdp=2", "Layout.tensor=2", "DecoderConfig.pipe_rows=2")
    finish(start(run, whole, compiled, *mesh, arguments=("--cpu_devices=8",)))
    assert checkpoints(run) == [4, 8, 12, 16]
    assert_same_course(run, whole)
    back_to(run, 8)
    finish(start(run, whole, compiled))
    assert_same_course(run, whole)


def test_two_processes_go_on_where_one_stopped_and_one_where_two_were_killed(whole, compiled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    back_to(run, 4)
    for process in together(run, whole, compiled, 2):
        finish(process)
    assert checkpoints(run) == [4, 8, 12, 16]
    assert_same_course(run, whole)
    first = losses(run)

    back_to(run, 8)
    killed = ("-m", "tests.killed", "update was sent", "3")
    left, lost = together(run, whole, compiled, 2, arguments=("--heartbeat_s=10",), last=killed)
    assert "process 1 has not been heard of for" in finish(left, expected=AGAIN)
    finish(lost, expected=-signal.SIGKILL)
    assert checkpoints(run) == [4, 8]
    again = losses(run)
    assert 9 in again and again == {step: first[step] for step in again}, "two go on from two to the bit"

    finish(start(run, whole, compiled))
    assert_same_course(run, whole)


@pytest.mark.slow
def test_four_processes_from_the_first_update_to_the_last(whole, compiled, tmp_path):
    run = tmp_path / "run"
    # All compile at the same time: CPU processes wait 30 s for one another, and not all of them would be in the cache.
    alike = compiled | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for process in together(run, whole, alike, 4, "Layout.data=2", "Layout.fsdp=2"):
        finish(process)
    assert checkpoints(run) == [4, 8, 12, 16]
    assert_same_course(run, whole, exact=0)


EVALUATED = "Experiment.evaluators=(@BitsPerByte(), @WorldProbes(), @Samples())"


def test_two_processes_measure_and_write_what_one_does(whole, compiled, tmp_path):
    """SIGTERM to one of them ends both, saved."""
    run = tmp_path / "run"
    bindings = ("WorldProbes.count=4", "WorldProbes.length=512", "WorldProbes.batch=4", "Samples.new_tokens=4")
    longer = ("STEPS=4000", "EVAL_EVERY=4000", "DecoderConfig.max_length=512")
    processes = together(run, whole, compiled, 2, EVALUATED, *longer, *bindings)
    wait_for(reached(run, 5), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, expected=AGAIN)
    assert checkpoints(run)[-1] >= 5
    before = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert {"eval/ko/bits_per_byte", "eval/world/particle/choice"} <= before.keys()
    (sample,) = (run / "samples").iterdir()
    assert sample.read_text().count("⟦") == 4


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (("BATCH=6", "ACCUMULATE=4"), "BATCH is 6; it must be a positive multiple of 4 (microbatches 4"),
        (("LENGTH=256",), "row of 256 tokens is longer than the model's context: DecoderConfig.max_length is 128"),
        (("VOCAB_SIZE=300",), "Tokenizer.size is 300, but the tokenizer in"),
        (("RATES={'ko': 1, 'en': -1, 'code': 1}",), "'en' is -1"),
        (("RATES={'ko': 1, 'en': 0, 'code': 1}",), "'en' is 0"),
        (("SOURCES={}",), "Corpus.sources is empty"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_to_change(whole, compiled, tmp_path, bindings, message):
    messages = finish(start(tmp_path / "run", whole, compiled, *bindings), expected=1)
    assert "error: " in messages
    assert message in messages
    assert "Traceback" not in messages
