"""The conversation in the terminal: commands, history, reasoning, Ctrl-C; and once with a model."""

import io
import json
import signal
import sys

import pytest

from hcxjax.inference.sampling import Sampling
from hcxjax.models.config import DecoderConfig
from hcxjax.text.templates import SEED, THINK, Message
from hcxjax.text.vocabulary import Vocabulary
from tests.tools.scripted import Scripted
from tools import chat
from tools.chat import Chat, Terminal

pytest.importorskip("tokenizers")
END = "<|im_end|><|endofturn|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tools.random_checkpoint import write_checkpoint

    tiny = DecoderConfig(300, 2, 32, 32, 2, 1, 16, 256)
    path = tmp_path_factory.mktemp("chat") / "tiny"
    write_checkpoint(path, tiny, dtype="float32")
    return path


@pytest.fixture(scope="module")
def vocabulary(folder):
    return Vocabulary(str(folder / "tokenizer.json"))


@pytest.fixture
def talk(vocabulary, monkeypatch, capsys):
    """(lines typed, answers of the engine) → (what was shown, the conversation, the engine)."""

    def run(lines, answers, template=SEED, engine=None, show=True, think=True, new_tokens=50, **arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        engine = engine or Scripted(vocabulary, answers, **arguments)
        conversation = Chat(engine, template, Sampling(), new_tokens, think=think)
        Terminal(conversation, show).run()
        return capsys.readouterr().out, conversation, engine

    return run


def prompt_of(engine, number=-1):
    return engine.vocabulary.decode(engine.requests[number].prompt, specials=True)


def test_a_question_is_answered_and_remembered(talk):
    shown, conversation, engine = talk(["안녕", "", "또"], [f"반가워요{END}", f"네{END}"])
    assert shown == "반가워요\n네\n"
    expected = [("user", "안녕"), ("assistant", "반가워요"), ("user", "또"), ("assistant", "네")]
    assert conversation.messages == [Message(*turn) for turn in expected]
    assert prompt_of(engine) == SEED.text(conversation.messages[:-1])
    assert [request.stream for request in engine.requests] == [0, 1]
    assert set(engine.requests[0].stop_ids) == set(SEED.stop_ids(engine.vocabulary))


def test_commands(talk, tmp_path):
    file = tmp_path / "talk.json"
    lines = [
        "/system 짧게",
        "하나",
        "둘",
        "/undo",
        f"/save {file}",
        "/help",
        "/nothing",
        "//셋",
        "/reset",
        "/undo",
        "/exit",
        "넷",
    ]
    shown, conversation, engine = talk(lines, [f"1{END}", f"2{END}", f"3{END}"])
    assert json.loads(file.read_text())["messages"] == [
        {"role": "system", "content": "짧게"},
        {"role": "user", "content": "하나"},
        {"role": "assistant", "content": "1"},
    ]
    assert all(command in shown for command in chat.COMMANDS)
    assert "there is no command /nothing" in shown
    assert "<|im_start|>user\n/셋<|im_end|>" in prompt_of(engine)
    assert "둘" not in prompt_of(engine)
    assert "(nothing to take back)" in shown
    assert conversation.messages == [Message("system", "짧게")]
    assert len(engine.requests) == 3


def test_a_file_that_cannot_be_written_ends_nothing(talk, tmp_path):
    shown, _, _ = talk(["/save", f"/save {tmp_path}/no/file", "가"], [f"나{END}"])
    assert "needs the name of a file" in shown
    assert "No such file" in shown
    assert shown.endswith("나\n")


def test_a_token_to_stop_at_is_not_shown(vocabulary):
    engine = Scripted(vocabulary, ["abcd"])
    conversation = Chat(engine, SEED, Sampling(), 50, stop_ids=tuple(vocabulary.encode("c")))
    conversation.ask("?")
    assert "".join(text for _, text in conversation.answer(lambda: False)) == "ab"
    assert conversation.turns[-1] == Message("assistant", "ab")


THOUGHT = f"비가 오니까<|im_end|>\n<|im_start|>assistant\n우산이요{END}"


@pytest.mark.parametrize(
    ("show", "expected"), [(True, "(thinking)\n비가 오니까\n(answer)\n우산이요\n"), (False, "(thinking …)\n우산이요\n")]
)
def test_reasoning_is_shown_or_hidden_and_not_kept(talk, show, expected):
    shown, conversation, engine = talk(["뭘 챙길까?", "왜?"], [THOUGHT, THOUGHT], template=THINK, show=show)
    assert shown == expected * 2
    assert "비가" not in prompt_of(engine)
    assert prompt_of(engine).endswith("<|im_start|>assistant/think\n")
    assert conversation.turns[1] == Message("assistant", "우산이요")


def test_reasoning_can_be_left_out(talk):
    shown, _, engine = talk(["뭘?"], [f"우산{END}"], template=THINK, think=False)
    assert shown == "우산\n"
    assert prompt_of(engine).endswith("<|im_start|>assistant\n")


def test_reasoning_that_never_ends_leaves_no_turn(talk):
    shown, conversation, _ = talk(["뭘?"], ["끝없이 " * 20], template=THINK)
    assert shown.endswith("(no answer; the question is taken back)\n")
    assert conversation.turns == []


class Pressed(Scripted):
    """Ctrl-C is pressed in some rounds."""

    at: tuple[int, ...] = ()

    def advance(self):
        deltas = super().advance()
        if self.rounds in self.at:
            signal.raise_signal(signal.SIGINT)
        return deltas


def test_ctrl_c_stops_the_answer_and_not_the_program(talk, vocabulary):
    engine = Pressed(vocabulary, ["abcdefgh", "go on"])
    engine.at = (3,)
    shown, conversation, _ = talk(["one", "two"], [], engine=engine)
    assert shown == "abc (stopped)\ngo on\n"
    assert [message.content for message in conversation.turns] == ["one", "abc", "two", "go on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_word_takes_the_question_back(talk, vocabulary):
    engine = Pressed(vocabulary, ["가나", "다"])  # a syllable is three bytes, each a token
    engine.at = (1,)
    shown, conversation, _ = talk(["one", "two"], [], engine=engine)
    assert [message.content for message in conversation.turns] == ["two", "다"]
    assert "taken back" in shown


def test_ctrl_c_twice_ends(talk, vocabulary):
    engine = Pressed(vocabulary, ["abcdefgh"])
    engine.cancel = lambda number: None
    engine.at = (3, 4)
    with pytest.raises(KeyboardInterrupt):
        talk(["one"], [], engine=engine)


def test_the_oldest_turns_go_when_the_context_is_full(talk):
    answers = [f"{'b' * 30}{END}"] * 4
    shown, conversation, engine = talk([letter * 20 for letter in "acde"], answers, context=220, new_tokens=40)
    assert "(the oldest 2 messages no longer fit the context and were dropped)" in shown
    assert all(len(request.prompt) + 40 <= 220 for request in engine.requests)
    assert "a" * 20 not in prompt_of(engine)
    assert conversation.turns[0] != Message("user", "a" * 20)
    assert conversation.turns[0].role == "user"


def test_a_question_that_never_fits_is_refused_and_what_was_there_stays(talk):
    shown, conversation, engine = talk(["가", "긴 " * 100, "나"], [f"1{END}", f"2{END}"], context=300)
    assert "of the context of 300, 50 are for the answer" in shown
    assert [message.content for message in conversation.turns] == ["가", "1", "나", "2"]
    assert len(engine.requests) == 2


def test_what_is_no_unicode_is_refused_and_not_remembered(talk, vocabulary):
    conversation = Chat(Scripted(vocabulary, []), SEED, Sampling(), 50)
    with pytest.raises(ValueError, match="lone surrogate"):
        conversation.ask("\udcff")  # what input() makes of a byte that is no UTF-8
    assert conversation.turns == []


class Refusing(Scripted):
    """Takes no request while it refuses."""

    refuses = True

    def submit(self, request):
        if self.refuses:
            self.refuses = False
            raise ValueError("the queue is full")
        return super().submit(request)


def test_a_question_that_the_engine_refuses_is_taken_back(talk, vocabulary):
    shown, conversation, engine = talk(["하나", "둘"], [], engine=Refusing(vocabulary, [f"2{END}"]))
    assert shown == "(the queue is full)\n2\n"
    assert [message.content for message in conversation.turns] == ["둘", "2"]
    assert "하나" not in prompt_of(engine)


def typed(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_with_a_model(folder, monkeypatch, capsys):
    arguments = ["--model", str(folder), "--new_tokens", "8", "--temperature", "0", "--context", "200"]
    typed(monkeypatch, "안녕", "/undo", "안녕")
    assert chat.main([*arguments, "--system", "짧게"]) == 0
    first, second = capsys.readouterr().out.split("(the last question is taken back)\n")
    assert first == second
    assert len(first) > 1
    typed(monkeypatch, "가" * 100)
    assert chat.main(arguments) == 0
    assert "of the context of 200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--template", "hcxjax"), "has no special <|"),
        (("--context", "257"), "--context is 257; it must be 1 to 256"),
        (("--temperature", "-1"), "temperature is -1.0"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, arguments, message):
    typed(monkeypatch, "가")
    assert chat.main(["--model", str(folder), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_fits_no_template(folder, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        (other / file.name).write_bytes(content.replace(b"<|stop|>", b"<|halt|>") if "token" in file.name else content)
    assert chat.main(["--model", str(other)]) == 1
    assert "has the specials of no template; --template names one: hcxjax, seed, think" in capsys.readouterr().err
