"""Programs on PATH that stand for those of a cluster: they write down their arguments and do what a test tells them."""

import json
import os
import sys
from pathlib import Path

PROGRAM = """\
#!{python}
import json, os, sys, time
from pathlib import Path
folder = Path({folder!r})
name = Path(sys.argv[0]).name
calls = folder / (name + ".jsonl")
number = len(calls.read_text().splitlines()) if calls.exists() else 0
with calls.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / (name + ".json")).read_text())
for answer in answers:
    if all(part in " ".join(sys.argv[1:]) for part in answer["with"]):
        turns = answer["turns"]
        turn = folder / (name + "-" + str(answers.index(answer)))
        done = int(turn.read_text()) if turn.exists() else 0
        turn.write_text(str(done + 1))
        status, printed, made, complaint = turns[min(done, len(turns) - 1)]
        if made:
            Path(made).mkdir(parents=True)
        print(printed, end="")
        print(complaint, end="", file=sys.stderr)
        sys.stdout.flush()
        if status == "wait":
            import signal
            signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
            (folder / "waiting").touch()
            time.sleep(60)
        if status in ("SIGTERM", "SIGINT"):
            import signal
            os.kill(os.getppid(), signal.Signals[status])
            status = 130 if status == "SIGINT" else 0
        sys.exit(status)
sys.exit("no answer for " + " ".join(sys.argv[1:]))
"""


class Fakes:
    """A folder of programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, *answers: dict) -> None:
        """A program; the first answer whose words are all among the arguments is given."""
        program = self.folder / name
        program.write_text(PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)
        (self.folder / f"{name}.json").write_text(json.dumps(answers))

    def calls(self, name: str, *words: str) -> list[list[str]]:
        """The arguments of every call, of those that have the words."""
        lines = (self.folder / f"{name}.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if all(word in " ".join(call) for word in words)]

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"


def answer(*turns, words=()) -> dict:
    """Turns are exit statuses, or (status, printed, folder that is made, complaint); the last one is given for ever.

    The status "wait" waits for SIGTERM and ends with 75; "SIGTERM" sends it to whoever called, and ends with 0;
    "SIGINT" reaches both, as Ctrl-C does.
    """
    whole = [turn if isinstance(turn, tuple) else (turn,) for turn in turns]
    return {"with": list(words), "turns": [(*turn, *("", "", "")[len(turn) - 1 :]) for turn in whole]}
