"""A corpus prepared by Apache Beam: the work of `hcxjax.data.engine.Local`, on as many machines as its runner has.

Parts go to workers whole; only signatures travel between them. Every worker needs this package and sees the sources and
`Corpus.directory` under the same paths, as on a shared or mounted file system. docs/data.md says how to run it on
Dataflow, Flink and Spark.
"""

import dataclasses
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hcxjax.data.cleaning.duplicates import NearDuplicates, duplicates
from hcxjax.data.engine import Signed

Found = tuple[int, tuple[str, int]]
"""(id that goes, (why, the smaller id that it matches))."""


@dataclasses.dataclass(frozen=True)
class Beam:
    """An engine for `Corpus`.

    Attributes:
      options: of the pipeline, as on its command line, such as '--runner=FlinkRunner'; the runner on this machine, with
        two processes, unasked.
    """

    options: tuple[str, ...] = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

    def each(self, work: Callable[..., bool], tasks: Sequence[tuple], description: str) -> None:
        """As `hcxjax.data.engine.Engine` has it."""
        with self._pipeline() as pipeline:
            _ = self._tasks(pipeline, tasks) | description >> _beam().Map(lambda task: work(*task))

    def duplicates(
        self, signed: Callable[..., Signed], tasks: Sequence[tuple], near: NearDuplicates, folder: str
    ) -> dict[int, tuple[str, int]]:
        """Documents meet where a key or a band is equal; what a bucket says does not depend on any other."""
        beam, place = _beam(), os.path.join(folder, "found")
        with self._pipeline() as pipeline:
            _ = (
                self._tasks(pipeline, tasks)
                | "keys and bands" >> beam.FlatMap(lambda task: keyed(signed(*task), near))
                | "buckets" >> beam.GroupByKey()
                | "matches" >> beam.FlatMap(lambda bucket: matches(bucket[1], near))
                | "smallest" >> beam.CombinePerKey(min)  # an exact match before a near one, as their names sort
                | "lines" >> beam.Map(json.dumps)
                | "found" >> beam.io.WriteToText(place)
            )
        found = {}
        for path in glob.glob(glob.escape(place) + "*"):
            with open(path, encoding="utf-8") as file:
                found |= {document: (reason, smaller) for document, (reason, smaller) in map(json.loads, file)}
            os.remove(path)
        return found

    def _pipeline(self) -> Any:
        from apache_beam.options.pipeline_options import PipelineOptions

        return _beam().Pipeline(options=PipelineOptions(list(self.options)))

    @staticmethod
    def _tasks(pipeline: Any, tasks: Sequence[tuple]) -> Any:
        beam = _beam()
        return pipeline | "parts" >> beam.Create(list(tasks), reshuffle=False) | "spread" >> beam.Reshuffle()


def keyed(signed: Signed, near: NearDuplicates) -> Iterator[tuple[tuple[str, int], tuple[int, int, bytes]]]:
    """(bucket, (id, exact key, signature)) for each bucket that a document belongs to."""
    for document, key, signature in zip(*signed, strict=True):
        told = (int(document), int(key), signature.tobytes())
        yield ("key", int(key)), told
        for band in near.bands_of(signature):
            yield ("band", band), told


def matches(bucket: Iterable[tuple[int, int, bytes]], near: NearDuplicates) -> Iterator[Found]:
    """What one bucket says of its documents."""
    told = list(bucket)
    if len(told) > 1:
        ids, keys, signatures = zip(*told, strict=True)
        yield from duplicates(ids, keys, [np.frombuffer(one, np.uint32) for one in signatures], near).items()


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise ValueError(
            "Corpus.engine is Beam, but apache-beam is missing: pip install -e '.[beam]', or use Local"
        ) from error
    return apache_beam
