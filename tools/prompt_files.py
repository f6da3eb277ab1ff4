"""A file of prompts worked through: many at once, each line for itself, and on from where a stopped command was."""

import argparse
import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import tqdm

from hcxjax.evaluation.samples import Prompt
from hcxjax.inference.engine import Engine
from hcxjax.inference.requests import Continuation, Request
from hcxjax.inference.sampling import Sampling
from hcxjax.text.templates import ANSWER, THINK_ROLE, AnswerStream, Template, messages_of
from hcxjax.text.vocabulary import StreamDecoder
from tools.opening import OpenModel, sampling_of, template_of

_KEPT = ("id", "prompt", "suffix", "messages")
_DRAWN = tuple(field.name for field in dataclasses.fields(Sampling))
_ALLOWED = (*_KEPT, *_DRAWN, "new_tokens", "stop", "stop_text")
_SHOWN = 5
"""Lines that cannot be used are reported one by one up to this many."""
_SECONDS = 1.0
"""What is done is on disk after at most this long."""


@dataclasses.dataclass
class _Job:
    """A line that is being worked on."""

    index: int
    kept: dict[str, Any]
    request: Request
    opened: str | None
    written: list[Continuation] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.written = [Continuation() for _ in range(self.request.samples)]

    @property
    def done(self) -> bool:
        return all(sample.finish is not None for sample in self.written)


def work_through(engine: Engine, opened: OpenModel, options: argparse.Namespace) -> None:
    """Writes a line to `options.output` for every line of `options.input` that it does not have yet.

    Raises:
      ValueError: the output was begun with other settings or another input, or, if `options.strict`, a line cannot be
        used.
    """
    maker = _Maker(opened, options)
    source, lines = _fingerprint(Path(options.input))
    output = _Output(Path(options.output), maker.settings(engine.context), source, Path(options.input))
    bar = tqdm.tqdm(total=lines, initial=len(output.done), unit=" lines", file=sys.stderr, mininterval=1)
    unused: list[str] = []
    jobs: dict[int, _Job] = {}
    tokens, begun = 0, time.monotonic()
    coming = _lines(Path(options.input), output.done)

    def refuse(index: int, error: Exception) -> None:
        message = f"line {index + 1}: {error}"
        if options.strict:
            raise ValueError(message) from error
        unused.append(message)
        output.write({"index": index, "error": str(error)})
        bar.update()

    with contextlib.closing(output), contextlib.closing(bar):
        while True:
            while engine.waiting < engine.settings.slots and (line := next(coming, None)) is not None:
                try:
                    job = maker.job(*line)
                    jobs[engine.submit(job.request)] = job
                except (ValueError, RecursionError) as error:
                    refuse(line[0], error)
            if engine.idle:
                break
            for delta in engine.advance():
                job = jobs[delta.request]
                job.written[delta.sample].add(delta)
                tokens += len(delta.tokens)
                if job.done:
                    output.write(maker.record(jobs.pop(delta.request)))
                    bar.update()
            bar.set_postfix_str(f"{tokens / (time.monotonic() - begun):,.0f} tokens/s", refresh=False)
    _report(unused, options.output)


def _report(unused: list[str], output: str) -> None:
    if unused:
        more = [f"and {len(unused) - _SHOWN} more"] if len(unused) > _SHOWN else []
        told = "\n  ".join([*unused[:_SHOWN], *more])
        count = f"{len(unused)} line{'s' if len(unused) > 1 else ''}"
        print(f"generate: {count} could not be used; {output} says why:\n  {told}", file=sys.stderr)


class _Maker:
    """Requests of lines, and lines of what was written."""

    def __init__(self, opened: OpenModel, options: argparse.Namespace):
        self._opened, self._options = opened, options
        self._template: Template | None = None
        if options.template is not None or opened.template is not None:
            self._template = template_of(options, opened)

    def settings(self, context: int) -> dict[str, Any]:
        """All that the texts depend on, besides the input."""
        options, opened = self._options, self._opened
        names = (*_DRAWN, "new_tokens", "samples", "stop", "stop_text", "think")
        return {
            "model": str(Path(options.model).resolve()),
            "step": opened.step,
            "tokenizer": opened.vocabulary.fingerprint,
            "begin": list(opened.begin),
            "ends": list(opened.ends),
            "dtype": opened.model.dtype,
            "int8": options.int8,
            "context": context,
            "template": self._template.name if self._template else None,
            **{name: getattr(options, name) for name in names},
        }

    def job(self, index: int, line: bytes) -> _Job:
        """ValueError where the line says no usable request."""
        entry = json.loads(line, parse_constant=_no_constant)
        if not isinstance(entry, dict):
            raise ValueError(f"{entry!r:.60} is no object")
        for name in entry.keys() - _ALLOWED:
            near = difflib.get_close_matches(name, _ALLOWED, n=1)
            raise ValueError(f"{name!r} is not known{f'; did you mean {near[0]!r}?' if near else ''}")
        options, samples = self._options, self._options.samples
        given = dataclasses.asdict(sampling_of(options)) | {name: entry[name] for name in _DRAWN if name in entry}
        tokens, stops, opened = self._tokens(entry)
        request = Request(
            tokens,
            entry.get("new_tokens", options.new_tokens),
            Sampling(**given),
            stop_ids=(*stops, *_listed(entry, "stop", int, options.stop)),
            stop=tuple(_listed(entry, "stop_text", str, options.stop_text)),
            samples=samples,
            stream=index * samples,
        )
        return _Job(index, {name: entry[name] for name in _KEPT if name in entry}, request, opened)

    def _tokens(self, entry: dict[str, Any]) -> tuple[list[int], tuple[int, ...], str | None]:
        """(prompt, stop ids, the role that is opened)."""
        vocabulary = self._opened.vocabulary
        if ("prompt" in entry) == ("messages" in entry):
            raise ValueError("it needs either prompt or messages")
        if "messages" in entry:
            if "suffix" in entry:
                raise ValueError("suffix goes with prompt, not with messages")
            template = self._template or template_of(self._options, self._opened)
            messages, think = messages_of(entry["messages"]), self._options.think != "off"
            tokens = template.tokens(messages, vocabulary, think=think)
            return tokens, template.stop_ids(vocabulary), template.opening(messages[-1].role, think)
        for name in ("prompt", "suffix"):
            if name in entry and not isinstance(entry[name], str):
                raise ValueError(f"{name} is {entry[name]!r:.60}; it must be a string")
        begin, ends = self._opened.text_ids
        return Prompt(entry["prompt"], entry.get("suffix")).tokens(vocabulary, begin), ends, None

    def record(self, job: _Job) -> dict[str, Any]:
        """What the output says of a line."""
        texts = {"texts": [sample.text for sample in job.written]}
        if job.opened == THINK_ROLE:
            parts = [self._told_apart(sample) for sample in job.written]
            texts = {"texts": [answer for _, answer in parts]}
            if self._options.think == "show":
                texts["reasoning"] = [reasoning for reasoning, _ in parts]
        return {
            "index": job.index,
            **job.kept,
            **texts,
            "finish": [sample.finish for sample in job.written],
            "prompt_tokens": len(job.request.prompt),
            "tokens": [len(sample.tokens) for sample in job.written],
        }

    def _told_apart(self, sample: Continuation) -> tuple[str, str]:
        """(reasoning, answer) of a text that begins with reasoning."""
        assert self._template is not None
        vocabulary = self._opened.vocabulary
        stream, parts = AnswerStream(self._template, vocabulary, THINK_ROLE), {THINK_ROLE: "", ANSWER: ""}
        for token in sample.tokens:
            text = stream.push(token)
            parts[stream.role] += text
        # The tokens go beyond the text where a stop string ended it.
        beyond = len(StreamDecoder(vocabulary).text(sample.tokens)) - len(sample.text)
        parts[stream.role] = parts[stream.role][: max(0, len(parts[stream.role]) - beyond)]
        return parts[THINK_ROLE], parts[ANSWER]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _listed(entry: dict[str, Any], name: str, kind: type, otherwise: list[Any]) -> list[Any]:
    found = entry.get(name, otherwise)
    if not isinstance(found, list) or not all(type(one) is kind for one in found):
        raise ValueError(f"{name} is {found!r:.60}; it must be a list of {'ids' if kind is int else 'strings'}")
    return found


def _lines(path: Path, done: set[int]) -> Iterator[tuple[int, bytes]]:
    """(index, line) of lines that have something in them and are not done."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if line.strip() and index not in done:
                yield index, line


def _fingerprint(path: Path, size: int | None = None) -> tuple[dict[str, Any], int]:
    """({bytes, sha256} of the file or its first `size` bytes, lines that have something in them)."""
    digest, count, lines = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        for line in file:
            line = line if size is None else line[: size - count]
            digest.update(line)
            count += len(line)
            lines += bool(line.strip())
    return {"bytes": count, "sha256": digest.hexdigest()}, lines


class _Output:
    """The file that grows by lines, and beside it the settings that it was begun with."""

    def __init__(self, path: Path, settings: dict[str, Any], source: dict[str, Any], input_path: Path):
        self._path, self._beside = path, path.with_name(path.name + ".settings.json")
        self.done: set[int] = set()
        if path.exists() and path.stat().st_size:
            self._check(settings, source, input_path)
            self.done = self._read()
        partial = self._beside.with_name(self._beside.name + ".partial")
        partial.write_text(json.dumps({**settings, "input": source}, ensure_ascii=False, indent=1), encoding="utf-8")
        partial.replace(self._beside)
        self._file = path.open("ab")
        self._lines: list[bytes] = []
        self._synced = time.monotonic()

    def _check(self, settings: dict[str, Any], source: dict[str, Any], input_path: Path) -> None:
        if not self._beside.is_file():
            raise ValueError(f"{self._path} exists, and {self._beside.name} is not beside it: name another --output")
        known = json.loads(self._beside.read_text(encoding="utf-8"))
        before = known.pop("input")
        changed = [
            f"{name} was {known.get(name)!r} and is {settings.get(name)!r}"
            for name in sorted(known.keys() | settings.keys())
            if known.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(f"{self._path} was begun otherwise: {'; '.join(changed)}. Name another --output")
        # Lines may have been added.
        same = source["bytes"] >= before["bytes"] and _fingerprint(input_path, before["bytes"])[0] == before
        if not same:
            raise ValueError(f"{input_path} has changed since {self._path} was begun: name another --output")

    def _read(self) -> set[int]:
        """Indices of the lines that are there; a last line that was cut short is taken away."""
        done, whole = set(), 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    done.add(json.loads(line)["index"])
                except (ValueError, TypeError, KeyError):
                    raise ValueError(f"{self._path}: line {number} has no index; name another --output") from None
                whole += len(line)
        os.truncate(self._path, whole)
        return done

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line, which is on disk soon."""
        try:
            line = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character in an id, which JSON can spell and UTF-8 cannot
            line = json.dumps(record).encode()
        self._lines.append(line + b"\n")
        if time.monotonic() - self._synced > _SECONDS:
            self._sync()

    def _sync(self) -> None:
        self._file.write(b"".join(self._lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines, self._synced = [], time.monotonic()

    def close(self) -> None:
        """Puts on disk what is left."""
        self._sync()
        self._file.close()
