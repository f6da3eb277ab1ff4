"""Cleaned documents: each source read once, part by part, by any number of processes, and kept until it is tokenised.

What is written is a function of the settings and the sources alone. A document's id is (unit, part, record): the unit
is a source's split, the part one of its files or shards, the record a number within the part.
"""

import collections
import dataclasses
import functools
import importlib
import inspect
import json
import os
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hcxjax.data.cleaning.duplicates import NearDuplicates, exact_key
from hcxjax.data.cleaning.steps import Holding, Step, clean
from hcxjax.data.cleaning.tally import Place, Tally, total
from hcxjax.data.engine import Engine, Signed, counted
from hcxjax.data.hashing import fingerprint
from hcxjax.data.publishing import publish, write_whole
from hcxjax.data.readers import Skips
from hcxjax.data.sources import SPLITS, SourceParts, Spec, held_out, import_seqio, open_source

_TEXTS, _INDEX, _TALLY = "texts.array_record", "index.npz", "part.json"
_DUPLICATES, _LISTING = "duplicates.npz", "listing.json"
_GROUP = 64  # documents that are compressed together
_ROUND = 256  # documents that a part gives to the tokenizer before the next part does
_OVER = "held out beyond Corpus.max_validation_documents"
_FORMAT = 1


class Unit(NamedTuple):
    """What is read as one: a source that has a validation split of its own is two units."""

    source: str
    split: str


class PartName(NamedTuple):
    """A part as it was listed.

    Attributes:
      name: for reports.
      identity: of its contents (`SourceParts.fingerprint`).
    """

    name: str
    identity: int


class Kept(NamedTuple):
    """A cleaned document."""

    record: int
    held_out: bool
    text: str


def document_id(unit: int, part: int, record: int) -> int:
    """One 63-bit number, in the order of reading: 10 bits of unit, 21 of part, 32 of record."""
    assert unit < 1 << 10 and part < 1 << 21 and record < 1 << 32, (unit, part, record)
    return unit << 53 | part << 32 | record


@dataclasses.dataclass(frozen=True)
class Documents:
    """Reads, cleans and keeps the documents of named sources; `Corpus` says what the fields mean.

    Every method may be called in any process; those that write publish a part whole, or find it there.
    """

    sources: Mapping[str, str]
    directory: str
    max_documents: int | None
    max_validation_documents: int | None
    max_document_bytes: int
    validation_share: float
    cleaning: Mapping[str, Sequence[Step]]
    duplicates: NearDuplicates | None
    task_modules: tuple[str, ...]

    def key(self, source: str) -> int:
        """Stands for all settings that decide which documents of `source` are kept, duplicates apart."""
        limits = (self.max_documents, self.max_validation_documents, self.max_document_bytes, self.validation_share)
        steps = [_settings(step) for step in self.cleaning.get(source, ())]
        return fingerprint(_FORMAT, self.sources[source], limits, steps, repr(self.duplicates))

    @property
    def keys(self) -> int:
        """Stands for the settings of all sources: which duplicates go depends on every one."""
        return fingerprint(sorted((name, self.key(name)) for name in self.sources))

    def folder(self, unit: Unit) -> str:
        """Where the documents of `unit` lie."""
        return os.path.join(self.directory, f"{unit.source}-{unit.split}-{self.key(unit.source):016x}")

    def part_folder(self, unit: Unit, part: int) -> str:
        """Where one part of them lies."""
        return os.path.join(self.folder(unit), f"part-{part:05d}")

    def opened(self, source: str) -> SourceParts:
        """The source, found and checked."""
        if source not in self._opened:
            if self.task_modules:
                import_seqio()  # ours first: see there
            for module in self.task_modules:
                importlib.import_module(module)
            self._opened[source] = open_source(self.sources[source], self.max_document_bytes)
        return self._opened[source]

    @functools.cached_property
    def _opened(self) -> dict[str, SourceParts]:
        return {}

    def __getstate__(self) -> dict[str, object]:
        # Open sources stay in their process.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def listing(self, source: str) -> dict[str, list[PartName]]:
        """The parts of a source by split, as they were found when first asked; every process works from that list.

        Files that come or go later would otherwise give other files the numbers of parts that are written.
        """
        if source not in self._listed:
            folder = os.path.join(self.directory, f"{source}-listing-{self.key(source):016x}")
            publish(folder, lambda temporary: self._list(source, temporary))
            with open(os.path.join(folder, _LISTING), encoding="utf-8") as file:
                found = json.load(file)
            self._listed[source] = {split: [PartName(*part) for part in parts] for split, parts in found.items()}
        return self._listed[source]

    @functools.cached_property
    def _listed(self) -> dict[str, dict[str, list[PartName]]]:
        return {}

    def _list(self, source: str, folder: str) -> None:
        write_whole(os.path.join(folder, _LISTING), self._parts_now(source))

    def _parts_now(self, source: str) -> dict[str, list[PartName]]:
        opened = self.opened(source)
        return {
            split: [
                PartName(opened.part_name(split, part), opened.fingerprint(split, part))
                for part in range(opened.parts(split))
            ]
            for split in (SPLITS if opened.own_validation else SPLITS[:1])
        }

    def units_of(self, source: str) -> list[Unit]:
        """The units of one source."""
        return [Unit(source, split) for split in self.listing(source)]

    def units(self) -> list[Unit]:
        """All units in the order of their numbers: what is trained on comes first."""
        found = [unit for source in sorted(self.sources) for unit in self.units_of(source)]
        return sorted(found, key=lambda unit: (SPLITS.index(unit.split), unit.source))

    @functools.cached_property
    def _numbers(self) -> dict[Unit, int]:
        return {unit: number for number, unit in enumerate(self.units())}

    def parts(self, unit: Unit) -> int:
        """Number of parts of a unit."""
        return len(self.listing(unit.source)[unit.split])

    def clean_part(self, unit: Unit, part: int, wait: bool = True) -> bool:
        """Reads, cleans and publishes one part; True where it is there, False where another process writes it."""
        return publish(self.part_folder(unit, part), lambda folder: self._write(folder, unit, part), wait=wait)

    def _write(self, folder: str, unit: Unit, part: int) -> None:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        listed, opened = self.listing(unit.source)[unit.split], self.opened(unit.source)
        if part >= opened.parts(unit.split) or opened.fingerprint(unit.split, part) != listed[part].identity:
            raise ValueError(
                f"files of source {unit.source} ({self.sources[unit.source]}) have changed since they were listed: "
                f"part {part} was {listed[part].name}. Delete {self.directory}/{unit.source}-* to read them anew"
            )
        tally, skips = Tally(), Skips()
        writer = array_record_module.ArrayRecordWriter(os.path.join(folder, _TEXTS), f"group_size:{_GROUP}")
        records, sides, keys, signatures = [], [], [], []
        for kept in counted(self._kept(unit, part, tally, skips), f"{unit.source} {unit.split}, part {part}"):
            writer.write(kept.text.encode())
            records.append(kept.record)
            sides.append(kept.held_out)
            if self.duplicates is not None:
                keys.append(exact_key(kept.text))
                signatures.append(self.duplicates.signature(kept.text))
        writer.close()
        arrays = {"records": np.array(records, np.int64), "held_out": np.array(sides, bool)}
        if self.duplicates is not None:
            signed = [signature for signature in signatures if len(signature)]
            arrays["keys"] = np.array(keys, np.int64)
            arrays["signed"] = np.array([len(signature) > 0 for signature in signatures], bool)
            arrays["signatures"] = np.stack(signed) if signed else np.zeros((0, 1), np.uint32)
        np.savez(os.path.join(folder, _INDEX), **arrays)
        for reason, count in skips.counts.items():
            tally.add_unread(reason, Place(unit.source, part, 0), count)
        write_whole(os.path.join(folder, _TALLY), {"tally": tally.to_json(), "unreadable_first_at": skips.examples})

    def _kept(self, unit: Unit, part: int, tally: Tally, skips: Skips) -> Iterator[Kept]:
        """The documents of a part that stay; those left out are counted in `tally` and `skips`."""
        source, steps, left = self.opened(unit.source), self.cleaning.get(unit.source, ()), self._limits(unit, part)
        for document in source.documents(unit.split, part, skips):
            if left[unit.split] == 0:
                break
            aside = unit.split == "validation" or (
                not source.own_validation and held_out(document.text, self.validation_share)
            )
            split = SPLITS[aside]
            outcome = clean(steps, document.text)
            if outcome.dropped is None and left[split] == 0:
                outcome = outcome._replace(dropped=_OVER)
            tally.add(document.text, outcome, Place(unit.source, part, document.record))
            if outcome.dropped is None:
                left[split] -= 1
                yield Kept(document.record, aside, outcome.text)

    def _limits(self, unit: Unit, part: int) -> dict[str, int]:
        """Documents that this part may give to each split: the source's limit dealt over its parts. -1 has no limit."""
        parts = self.parts(unit)

        def dealt(limit: int | None) -> int:
            return -1 if limit is None else limit // parts + (part < limit % parts)

        return {"train": dealt(self.max_documents), "validation": dealt(self.max_validation_documents)}

    def _read(self, unit: Unit, part: int, positions: np.ndarray) -> Iterator[Kept]:
        """The documents of a published part at `positions`, which rise."""
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        records, sides = self._records(unit, part)
        reader = array_record_module.ArrayRecordReader(os.path.join(self.part_folder(unit, part), _TEXTS))
        for start in range(0, len(positions), _GROUP):
            some = positions[start : start + _GROUP].tolist()
            for position, content in zip(some, reader.read(some), strict=True):
                yield Kept(int(records[position]), bool(sides[position]), content.decode())

    def _records(self, unit: Unit, part: int) -> tuple[np.ndarray, np.ndarray]:
        """(number within the part, held out) of each document of a published part."""
        with np.load(os.path.join(self.part_folder(unit, part), _INDEX)) as index:
            return index["records"], index["held_out"]

    def tally(self, unit: Unit) -> tuple[Tally, dict[str, str]]:
        """What was read, dropped and changed over all parts, duplicates too, and where what is unreadable stands."""
        parts, places = [], {}
        for part in range(self.parts(unit)):
            content = self._summary(unit, part)
            parts.append(Tally.from_json(content["tally"]))
            places = content["unreadable_first_at"] | places
        if self.duplicates is not None:
            with open(os.path.join(self._duplicates_folder, _TALLY), encoding="utf-8") as file:
                parts.append(Tally.from_json(json.load(file)[f"{unit.source}-{unit.split}"]))
        return total(parts), places

    def _summary(self, unit: Unit, part: int) -> dict:
        with open(os.path.join(self.part_folder(unit, part), _TALLY), encoding="utf-8") as file:
            return json.load(file)

    def changed(self, source: str, listing: Mapping[str, Sequence[Sequence]]) -> bool:
        """Are the files behind `source` other ones than `listing` has? False where they are not here."""
        if Spec.parse(self.sources[source]).scheme in ("task", "tfds"):
            return False  # opening one imports TensorFlow, and a Task says nothing of its contents
        try:
            return self._parts_now(source) != {split: [(*part,) for part in parts] for split, parts in listing.items()}
        except ValueError:
            return False

    def contents(self, source: str) -> list[str] | None:
        """What the lists and evaluation sets hold that clean `source`, as digests; None where they are not here."""
        try:
            return [step.contents() for step in self.cleaning.get(source, ()) if isinstance(step, Holding)]
        except ValueError:
            return None

    def duplicates_of(self, unit: Unit, part: int) -> np.ndarray:
        """Sorted ids of the duplicates in a part; none where they are not looked for."""
        if self.duplicates is None:
            return np.zeros(0, np.int64)
        with np.load(os.path.join(self._duplicates_folder, _DUPLICATES)) as found:
            ids, number = found["ids"], self._numbers[unit]
        start, stop = np.searchsorted(ids, [document_id(number, part, 0), document_id(number, part + 1, 0)])
        return ids[start:stop]

    def prepare(self, engine: Engine) -> None:
        """Writes all parts and looks for duplicates among them, where that was not done."""
        missing = [task for task in self.tasks() if not os.path.isdir(self.part_folder(*task))]
        if missing:
            engine.each(self.clean_part, missing, "reading and cleaning")
        near = self.duplicates
        if near is not None:

            def write(folder: str) -> None:
                self._write_duplicates(folder, engine.duplicates(self.signed, self.tasks(), near, folder))

            publish(self._duplicates_folder, write)

    def tasks(self) -> list[tuple[Unit, int]]:
        """All parts."""
        return [(unit, part) for unit in self.units() for part in range(self.parts(unit))]

    def signed(self, unit: Unit, part: int) -> Signed:
        """Ids, exact keys and signatures of the documents of a part; the signature of a short text is empty."""
        with np.load(os.path.join(self.part_folder(unit, part), _INDEX)) as index:
            rows, unsigned = iter(index["signatures"]), np.zeros(0, np.uint32)
            signatures = [next(rows) if signed else unsigned for signed in index["signed"]]
            return document_id(self._numbers[unit], part, 0) + index["records"], index["keys"], signatures

    @property
    def _duplicates_folder(self) -> str:
        return os.path.join(self.directory, f"duplicates-{self.keys:016x}")

    def _write_duplicates(self, folder: str, found: Mapping[int, tuple[str, int]]) -> None:
        """Keeps ids that go, the smaller ids that they match, reasons, and tallies by unit."""
        ids = sorted(found)
        np.savez(
            os.path.join(folder, _DUPLICATES),
            ids=np.array(ids, np.int64),
            matched=np.array([found[document][1] for document in ids], np.int64),
            reasons=np.array([found[document][0] for document in ids], np.str_),
        )
        tallies = {f"{unit.source}-{unit.split}": Tally() for unit in self.units()}
        for unit, part in self.tasks():
            first = document_id(self._numbers[unit], part, 0)
            own = [document - first for document in ids[bisect(ids, first - 1) : bisect(ids, first + (1 << 32) - 1)]]
            records, _ = self._records(unit, part)
            for kept in self._read(unit, part, np.searchsorted(records, own)):
                reason, place = found[first + kept.record][0], Place(unit.source, part, kept.record)
                tallies[f"{unit.source}-{unit.split}"].drop_kept(reason, place, kept.text)
        write_whole(os.path.join(folder, _TALLY), {name: tally.to_json() for name, tally in tallies.items()})

    def remaining(self, unit: Unit, part: int, *, held_out: bool) -> Iterator[Kept]:
        """The documents of a part that are, or are not, held out; duplicates left out."""
        return self._read(unit, part, self._positions(unit, part, held_out))

    def _positions(self, unit: Unit, part: int, held_out: bool) -> np.ndarray:
        records, sides = self._records(unit, part)
        first = document_id(self._numbers[unit], part, 0)
        return np.flatnonzero((sides == held_out) & ~np.isin(first + records, self.duplicates_of(unit, part)))

    def training_texts(self, source: str) -> Iterator[str]:
        """Training documents of a source, `_ROUND` from each part in turn."""
        unit = Unit(source, "train")
        waiting = collections.deque((part, 0) for part in range(self.parts(unit)))
        while waiting:
            part, start = waiting.popleft()
            positions = self._positions(unit, part, held_out=False)
            yield from (kept.text for kept in self._read(unit, part, positions[start : start + _ROUND]))
            if start + _ROUND < len(positions):
                waiting.append((part, start + _ROUND))


def _settings(step: Step) -> tuple[str, list[tuple[str, str]]]:
    """Name and fields of a step; a function among them by its name: its repr differs from process to process."""

    def told(value: object) -> str:
        shown = f"{value.__module__}.{value.__qualname__}" if inspect.isfunction(value) else repr(value)
        if " at 0x" in shown:
            raise ValueError(
                f"{type(step).__name__} holds {shown}, whose name differs from process to process: use a function, or "
                "a dataclass, so that what was cleaned is found again"
            )
        return shown

    assert dataclasses.is_dataclass(step)
    fields = [(field.name, told(getattr(step, field.name))) for field in dataclasses.fields(step)]
    return f"{type(step).__module__}.{type(step).__qualname__}", fields


def describe(tally: Tally, places: Mapping[str, str]) -> str:
    """What was left out in one line: documents by reason, each with the first place it was found."""
    reasons = []
    for reason, count in tally.dropped.most_common():
        shown = places.get(reason) or next((str(example.place) for example in tally.examples.get(reason, [])), "?")
        reasons.append(f"{count} x {reason} (first: {shown})")
    return "; ".join(reasons) or "nothing left out"
