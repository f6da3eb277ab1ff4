"""Talks with a model in the terminal.

python -m tools.chat --model models/seed_0.5b --system "너는 친절한 조수다."

Lines that begin with / are commands; /help lists them. Ctrl-C stops an answer, Ctrl-D ends. Lines may also come from a
pipe.
"""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hcxjax.checkpoint import CheckpointError
from hcxjax.inference.engine import Engine
from hcxjax.inference.requests import Request
from hcxjax.inference.sampling import Sampling
from hcxjax.text.templates import ANSWER, THINK_ROLE, AnswerStream, Message, Template
from hcxjax.tracking import quiet_libraries
from tools import opening
from tools.generate import INTERRUPTED

COMMANDS = {
    "/help": "these commands",
    "/system TEXT": "what the model is told before the first turn; without TEXT nothing",
    "/undo": "take back the last question and its answer",
    "/reset": "begin anew, with the same system text",
    "/save FILE": "write the conversation as JSON",
    "/exit": "end, as Ctrl-D does",
}


class Chat:
    """A conversation and the engine that answers.

    Args:
      new_tokens: of an answer, at most.
      think: let the model reason first, where the template has it.
    Attributes:
      system: text before the first turn, or None.
      turns: questions and answers in turn, without the system text.
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        sampling: Sampling,
        new_tokens: int,
        stop_ids: tuple[int, ...] = (),
        think: bool = True,
    ):
        assert engine.vocabulary is not None
        self.system: str | None = None
        self.turns: list[Message] = []
        self._engine, self._template, self._vocabulary = engine, template, engine.vocabulary
        self._sampling, self._new_tokens, self._think = sampling, new_tokens, think
        self._stop_ids = (*template.stop_ids(self._vocabulary), *stop_ids)
        self._asked = 0
        self._prompt([Message("user", "")])  # a vocabulary without the template's marks is refused at once

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        return self._whole(self.turns)

    def undo(self) -> bool:
        """Takes the last question and its answer back; was there one?"""
        found = bool(self.turns)
        del self.turns[-2:]
        return found

    def ask(self, question: str) -> int:
        """Adds a question; how many of the oldest turns had to go so that an answer has room.

        Raises:
          ValueError: even alone it leaves no room; it is not added.
        """
        turns = [*self.turns, Message("user", question)]
        room = min(self._new_tokens, self._engine.context // 2)
        while len(tokens := self._prompt(turns)) + room > self._engine.context:
            if len(turns) == 1:
                raise ValueError(
                    f"the question has {len(tokens)} tokens with what is always before it; of the context of "
                    f"{self._engine.context}, {room} are for the answer. Shorten it, or raise --context"
                )
            del turns[:2]
        dropped = len(self.turns) + 1 - len(turns)
        self.turns = turns
        return dropped

    def answer(self, stopped: Callable[[], bool]) -> Iterator[tuple[str, str]]:
        """(role, text) as it comes; the answer joins the conversation when it ends.

        A question that gets no answer, because it was stopped or all room went into reasoning, is taken back.

        Args:
          stopped: asked between rounds; true ends the answer where it is.
        Raises:
          ValueError: the engine refuses the request; the question is taken back.
        """
        # Another stream for every question: one that is asked again may be answered otherwise.
        prompt, draws = self._prompt(self.turns), self._asked
        self._asked += 1
        try:
            number = self._engine.submit(
                Request(prompt, self._new_tokens, self._sampling, stop_ids=self._stop_ids, stream=draws)
            )
        except ValueError:
            self.turns.pop()
            raise
        cancelled, said = False, ""
        stream = AnswerStream(self._template, self._vocabulary, self._template.opening("user", self._think))
        while not self._engine.idle:
            for delta in self._engine.advance():
                for token in delta.tokens:
                    if token in self._stop_ids:
                        break
                    text = stream.push(token)
                    said += text if stream.role == ANSWER else ""
                    yield stream.role, text
            if stopped() and not cancelled:
                self._engine.cancel(number)
                cancelled = True
        if said:
            self.turns.append(Message(ANSWER, said))
        else:
            self.turns.pop()

    def _prompt(self, turns: list[Message]) -> list[int]:
        return self._template.tokens(self._whole(turns), self._vocabulary, think=self._think)

    def _whole(self, turns: list[Message]) -> list[Message]:
        return turns if self.system is None else [Message("system", self.system), *turns]


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Has Ctrl-C been pressed? It interrupts nothing the first time: half a round would leave the engine broken."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


class Terminal:
    """Reads lines, runs commands, shows answers.

    Args:
      show_thinking: show what the model writes before its answer.
    """

    def __init__(self, chat: Chat, show_thinking: bool):
        self._chat, self._show_thinking = chat, show_thinking
        self._asks = "› " if sys.stdin.isatty() else ""

    def run(self) -> None:
        """Until /exit or the end of the lines."""
        while True:
            try:
                line = input(self._asks).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            if line == "/exit":
                return
            try:
                self._take(line)
            except (ValueError, OSError) as error:
                print(f"({error})")

    def _take(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            command, _, argument = line.partition(" ")
            self._command(command, argument.strip())
        elif line:
            self._answer(line.removeprefix("/"))

    def _command(self, command: str, argument: str) -> None:
        chat = self._chat
        if command == "/help":
            for name, meaning in COMMANDS.items():
                print(f"  {name:14}{meaning}")
            print("  //…           a line that begins with /")
        elif command == "/system":
            chat.system = argument or None
            print("(system text set)" if argument else "(no system text)")
        elif command == "/undo":
            print("(the last question is taken back)" if chat.undo() else "(nothing to take back)")
        elif command == "/reset":
            chat.turns.clear()
            print("(begun anew)")
        elif command == "/save":
            if not argument:
                raise ValueError("/save needs the name of a file")
            messages = [message._asdict() for message in chat.messages]
            text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1)
            Path(argument).expanduser().write_text(text + "\n", encoding="utf-8")
            print(f"(saved as {argument})")
        else:
            raise ValueError(f"there is no command {command}; /help lists them")

    def _answer(self, question: str) -> None:
        dropped = self._chat.ask(question)
        if dropped:
            print(f"(the oldest {dropped} messages no longer fit the context and were dropped)")
        role, answered = None, False
        with _interruptible() as stopped:
            for part, text in self._chat.answer(stopped):
                answered |= part == ANSWER and bool(text)
                if part != role:
                    self._open(role, part)
                    role = part
                if part == ANSWER or self._show_thinking:
                    print(text, end="", flush=True)
            print(" (stopped)" if stopped() else "", flush=True)
        if not answered:
            print("(no answer; the question is taken back)")

    def _open(self, before: str | None, role: str) -> None:
        if role == THINK_ROLE:
            print("(thinking)" if self._show_thinking else "(thinking …)", flush=True)
        elif before == THINK_ROLE:
            print("\n(answer)" if self._show_thinking else "", end="\n" if self._show_thinking else "", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    opening.add_model_arguments(arguments, slots=False)
    arguments.add_argument("--system", metavar="TEXT", help="what the model is told before the first turn")
    opening.add_template_arguments(arguments)
    opening.add_sampling_arguments(arguments, new_tokens=512)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Talks until the lines end; 1 where something is wrong."""
    options = parser().parse_args(argv)
    quiet_libraries()
    try:
        sampling = opening.sampling_of(options)
        opened = opening.open_named(options)
        template = opening.template_of(options, opened)
        settings = opening.settings_of(options, opened, slots=1)
        with opened.layout.active():
            engine = Engine(opened.model, opened.params, opened.vocabulary, settings)
            chat = Chat(engine, template, sampling, options.new_tokens, tuple(options.stop), options.think != "off")
            chat.system = options.system
            if sys.stdin.isatty():
                with contextlib.suppress(ImportError):  # some Pythons are built without it
                    import readline  # noqa: F401  # its import gives input() editing and a history
                print(f"{opened.name}, step {opened.step}; /help lists commands")
            Terminal(chat, options.think == "show").run()
    except (ValueError, OSError, CheckpointError) as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
