"""JSON objects and table rows, one record at a time; what cannot be read is skipped and counted."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hcxjax.data.readers import JSONL_ENDINGS, PARQUET_ENDINGS, Skips, json_lines, parquet_reason


class Record(NamedTuple):
    """A record and where it stands, as file:line."""

    place: str
    fields: Mapping[str, Any]


RECORD_ENDINGS = {"jsonl": JSONL_ENDINGS, "parquet": PARQUET_ENDINGS}


def read_records(scheme: str, path: str, max_bytes: int, skips: Skips) -> Iterator[Record]:
    """Records of a file.

    Args:
      scheme: 'jsonl' (plain, .gz or .zst) or 'parquet'.
      max_bytes: a longer line is skipped, and never held in memory.
    """
    return _json_records(path, max_bytes, skips) if scheme == "jsonl" else _table_records(path, skips)


def _json_records(path: str, max_bytes: int, skips: Skips) -> Iterator[Record]:
    for number, line in json_lines(path, max_bytes, skips):
        place = f"{path}:{number}"
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            skips.add("invalid UTF-8", place)
        except (ValueError, RecursionError):
            skips.add("malformed JSON", place)
        else:
            if isinstance(fields, dict):
                yield Record(place, fields)
            else:
                skips.add("no JSON object", place)


def _table_records(path: str, skips: Skips) -> Iterator[Record]:
    """Rows of a Parquet file; a row group that cannot be read is counted row by row, and those after it are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        return skips.add(parquet_reason(path, error), path)
    with file:
        if not file.metadata.num_rows:
            return skips.add("empty file", path)
        first = 1
        for group in range(file.num_row_groups):
            number, rows = first, file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=64, row_groups=[group], use_threads=False):
                    for row in range(batch.num_rows):
                        place = f"{path}:{number}"
                        try:
                            (fields,) = batch.slice(row, 1).to_pylist()
                            yield Record(place, fields)
                        except UnicodeDecodeError:
                            skips.add("invalid UTF-8", place)
                        number += 1
            except (pyarrow.ArrowException, OSError) as error:
                skips.add(parquet_reason(path, error), f"{path}:{number}", first + rows - number)
            first += rows
