"""The tool that lets a run write, on the run of the whole-run tests."""

import dataclasses
import shutil

import pytest

from hcxjax.data.tokenizer import Tokenizer
from hcxjax.inference.engine import Engine
from hcxjax.inference.requests import Delta, Request
from tools import generate


def written(capsys, run, *arguments: str) -> str:
    assert generate.main(["--model", str(run), *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def run(whole):
    return whole


def test_it_goes_on_from_a_prompt(run, capsys):
    text = written(capsys, run, "--prompt", "토요일에 ", "--new_tokens", "8", "--temperature", "0")
    assert text.startswith("토요일에 ")
    assert len(text) > len("토요일에 \n")
    assert text == written(capsys, run, "--prompt", "토요일에 ", "--new_tokens", "8", "--temperature", "0")


def test_it_fills_a_gap(run, capsys):
    text = written(capsys, run, "--prompt", "assert ", "--suffix", " == 3", "--new_tokens", "4")
    assert text.startswith("assert ")
    assert text.endswith(" == 3\n")


def test_an_older_checkpoint_and_a_seed(run, capsys):
    arguments = ("--prompt", "a", "--new_tokens", "12", "--step", "8")
    one = written(capsys, run, *arguments, "--seed", "1")
    assert one == written(capsys, run, *arguments, "--seed", "1")
    assert one != written(capsys, run, *arguments, "--seed", "2")


def test_several_samples_follow_each_other(run, capsys):
    shown = written(capsys, run, "--prompt", "하나", "--new_tokens", "6", "--samples", "3", "--temperature", "1")
    texts = [part.split("──\n")[-1].strip("\n") for part in shown.split("\n── ")]
    assert len(set(texts)) == 3
    assert all(text.startswith("하나") for text in texts)
    alone = written(capsys, run, "--prompt", "하나", "--new_tokens", "6", "--temperature", "1")
    assert alone.strip("\n") == texts[0]


def test_samples_keep_their_order_whichever_ends_first(run, capsys, monkeypatch):
    class Uneven(Engine):
        """The second sample ends before the first."""

        rounds = iter([[(0, "가", None), (1, "라", "stop")], [(0, "나", None)], [(0, "다", "length")]])
        asked: Request
        idle = False

        def submit(self, request):
            type(self).asked = request
            return 0

        def advance(self):
            deltas = [Delta(0, sample, (5,), (0.0,), text, finish) for sample, text, finish in next(self.rounds)]
            self.idle = deltas[0].finish is not None
            return deltas

    monkeypatch.setattr(generate, "Engine", Uneven)
    arguments = ("--prompt", "하나 ", "--suffix", "!", "--samples", "2", "--stop", "5", "--stop", "7", "--seed", "3")
    assert written(capsys, run, *arguments) == "하나 가나다!\n\n── 2 of 2 ──\n하나 라!\n"
    assert Uneven.asked.stop_ids == (generate.opening.open_model(run).vocabulary.end_of_text, 5, 7)
    assert (Uneven.asked.samples, Uneven.asked.sampling.seed) == (2, 3)


def test_a_stop_text_ends_it(run, capsys):
    arguments = ("--prompt", "토요일에 ", "--new_tokens", "8", "--temperature", "0")
    text = written(capsys, run, *arguments).removeprefix("토요일에 ").rstrip("\n")
    cut = written(capsys, run, *arguments, "--stop_text", text[1:3])
    assert cut == "토요일에 " + text[: text.index(text[1:3])] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "3"), "no checkpoint of step 3; it has steps [4, 8, 12, 16]"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--top_p", "0"), "top_p is 0.0"),
        (("--new_tokens", "0"), "new_tokens is 0"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, message):
    assert generate.main(["--model", str(run), "--prompt", "a", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_for_the_output_is_looked_for_before_the_model(run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("{}")
    files = ("--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "no" / "out.jsonl"))
    assert generate.main(["--model", str(tmp_path / "nothing"), *files]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"there is no folder {tmp_path / 'no'}" in error


def test_a_text_begins_and_ends_as_its_model_says(run, capsys, monkeypatch, tmp_path):
    """The ids of the one place that says so, whether a prompt is given or a file."""
    opened = generate.opening.open_model
    other = lambda *given: dataclasses.replace(opened(*given), begin=(5, 6), ends=(7, 8))  # noqa: E731
    asked, submit = [], Engine.submit
    monkeypatch.setattr(generate.opening, "open_model", other)
    monkeypatch.setattr(Engine, "submit", lambda engine, given: asked.append(given) or submit(engine, given))
    written(capsys, run, "--prompt", "a", "--new_tokens", "1", "--stop", "9")
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "stop": [9]}')
    written(capsys, run, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o"), "--new_tokens", "1")
    assert [tuple(request.prompt[:2]) for request in asked] == [(5, 6)] * 2
    assert [request.stop_ids for request in asked] == [(7, 8, 9)] * 2
    neither = lambda *given: dataclasses.replace(opened(*given), begin=(), ends=())  # noqa: E731
    monkeypatch.setattr(generate.opening, "open_model", neither)
    assert generate.main(["--model", str(run), "--prompt", "a"]) == 1
    assert "no bos_token_id or eos_token_id is in" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_named(run, capsys):
    assert generate.main(["--model", str(run), "--prompt", "가나다 " * 200]) == 1
    assert "the model's context is 128" in capsys.readouterr().err


def test_no_run_is_named(tmp_path, capsys):
    assert generate.main(["--model", str(tmp_path), "--prompt", "a"]) == 1
    assert "has no config.gin" in capsys.readouterr().err


def test_another_tokenizer_than_the_checkpoint_s_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    Tokenizer(size=400).train(str(copy / "tokenizer"), ["다른 글", "another text"])
    assert generate.main(["--model", str(copy), "--prompt", "a"]) == 1
    assert "trained with another tokenizer" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main(["--help"])
    assert stopped.value.code == 0
    assert "--suffix" in capsys.readouterr().out
