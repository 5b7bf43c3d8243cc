"""Records on disk, to be trained on without being read into memory.

A store is a folder: `store.json`, which is written last; plain columns as Arrow streams, one after another; and for
each column of codes the sets of all records in compressed rows. It is mapped into memory, so that a row costs a read of
the disk when it is drawn, and nothing before.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.mapping import mapped
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import unreadable, write_whole

STORE_VERSION = 1
STORE_FILE = "store.json"
PROGRESS_FILE = "progress.json"  # of one that is being made
_BLOCK = 1 << 24  # bytes
_UNREADABLE = (
    pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError,
    RecursionError,
)  # fmt: skip
_CHECKSUM = "crc32"
_AGAIN = "Make it again with `dpcgan prepare`."


@dataclass(frozen=True)
class CodeFiles:
    """Names of the files of a column of codes: starts int64 (N + 1,), positions int32 (E,), and names, a line each."""

    starts: str
    positions: str
    names: str

    def all(self) -> tuple[str, str, str]:
        """The three."""
        return self.starts, self.positions, self.names

    @classmethod
    def of(cls, place: int) -> "CodeFiles":
        """Those of the column of codes at a place among them."""
        return cls(*(f"codes-{place}.{kind}" for kind in ("starts", "positions", "names")))


def part_file(number: int) -> str:
    """Name of the file with a part of the plain columns."""
    return f"columns-{number:05}.arrow"


def is_store(path: Path) -> bool:
    """Whether a path is a store that was written whole."""
    return (path / STORE_FILE).is_file()


def refuse_unfinished(path: Path) -> None:
    """Raises InputError if a path is a store that is still being made."""
    if (path / PROGRESS_FILE).is_file():
        raise InputError("The store is not finished", str(path), "Run the same `dpcgan prepare` again to go on.")


def store_facts(schema: Schema) -> dict[str, Any]:
    """What of a schema decides what a store holds, as JSON values."""
    return {
        "unit": schema.unit,
        "max_rows_per_unit": schema.max_rows_per_unit,
        "dates": {column.name: column.origin for column in schema.columns if column.type == "date"},
        "codes": {
            column.name: {
                "vocabulary": list(column.vocabulary) if isinstance(column.vocabulary, tuple) else column.vocabulary,
                "separator": column.separator,
                "max_codes": column.max_codes,
            }
            for column in schema.as_records().codes_columns()
        },
        "visits": _visits_facts(schema),
    }


def _visits_facts(schema: Schema) -> dict[str, Any] | None:
    """Also the bounds of the time, within which times are before gaps are taken, and from which bins are counted."""
    if schema.visits is None:
        return None
    bounds = next(column.bounds for column in schema.columns if column.name == schema.visits.time)
    columns = sorted({*schema.visits.columns, schema.visits.time})
    return {
        "time": schema.visits.time,
        "bounds": list(bounds) if isinstance(bounds, tuple) else None,
        "max_visits": schema.visits.max_visits,
        "columns": columns,
        "key": schema.visits.key,
        "from_first": schema.visits.from_first,
        "bins": None if schema.visits.bins is None else schema.visits.bins.model_dump(),
    }


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def sealed(facts: dict[str, Any]) -> str:
    """Facts as JSON text, with a checksum that `unsealed` compares."""
    return json.dumps({**facts, _CHECKSUM: _checksum_of(facts)})  # indented, it would take ten times as long


def unsealed(text: str) -> dict[str, Any]:
    """The facts that were sealed. Raises one of the errors of damaged JSON if they are not the same any more."""
    facts = dict(json.loads(text))
    if facts.pop(_CHECKSUM) != _checksum_of(facts):
        raise ValueError
    return facts


def _checksum_of(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def damaged_work(path: Path, what: str) -> InputError:
    """The error for a file of a store that is being made, of which nothing is then kept."""
    return InputError(f"The work that was begun is damaged: {what}", str(path), "Run the same command again.")


def write_store_file(
    path: Path, schema: Schema, rows: int, parts: list[str], names: list[list[str]],
    written: Mapping[str, int] | None = None, source: list[list[Any]] | None = None,
) -> None:  # fmt: skip
    """Makes a store of a folder that has all other files: writes the names of codes, then sizes and checksums.

    parts:   files of plain columns; names: codes, by column of codes
    written: checksums of files as they were written, which they must still have
    source:  of what it was made, for `is_made_of`
    Raises InputError if a file is not what was written, MachineError if the machine cannot write.
    """
    files = [*parts]
    for place, codes in enumerate(names):
        own = CodeFiles.of(place)
        write_whole(path / own.names, "".join(json.dumps(name) + "\n" for name in codes), private=True)
        files += own.all()
    sums = {}
    for name in files:
        if not (path / name).is_file():
            raise damaged_work(path / name, "a file is missing")
        sums[name] = {"bytes": (path / name).stat().st_size, "crc32": checksum(path / name)}
        if sums[name]["crc32"] != (written or {}).get(name, sums[name]["crc32"]):
            raise damaged_work(path / name, "a checksum does not match")
    facts = {"version": STORE_VERSION, "facts": store_facts(schema), "rows": rows, "parts": parts, "files": sums,
             "source": source, "columns": list(table_columns(schema))}  # fmt: skip
    write_whole(path / STORE_FILE, sealed(facts), private=True)


def is_made_of(path: Path, source: list[list[Any]], schema: Schema) -> bool:
    """Whether a path is a whole store that was made of this very source by a schema that asks for the same."""
    try:
        facts = unsealed((path / STORE_FILE).read_text(encoding="utf-8"))
        made = facts["version"], facts["facts"], facts["columns"], facts["source"]
    except _UNREADABLE:
        return False
    return made == (STORE_VERSION, store_facts(schema), list(table_columns(schema)), source)


def read_store(path: Path, schema: Schema) -> pa.Table:
    """The columns that a schema wants, mapped into memory: the unit's, if it was kept, and the modelled ones.

    All files are read once, to compare their checksums. Raises InputError if the store is damaged or was made for
    another schema.
    """
    try:
        facts = unsealed((path / STORE_FILE).read_text(encoding="utf-8"))
        if facts["version"] != STORE_VERSION:
            raise InputError("The store is of another version", str(path), _AGAIN)
        _refuse_other_schema(facts["facts"], schema, path)
        for name, file in facts["files"].items():
            if (path / name).stat().st_size != file["bytes"] or checksum(path / name) != file["crc32"]:
                raise InputError("The store is damaged: a checksum does not match", str(path / name), _AGAIN)
        return _mapped(path, facts, schema.as_records())
    except InputError:
        raise
    except _UNREADABLE as error:
        raise unreadable(error, path) from None


def _refuse_other_schema(facts: dict[str, Any], schema: Schema, path: Path) -> None:
    wanted = store_facts(schema)
    for name in ("unit", "max_rows_per_unit", "dates", "visits"):
        if facts.get(name) != wanted[name]:
            raise InputError(f'The store was made for another schema: "{name}" differs', str(path), _AGAIN)
    for name, codes in wanted["codes"].items():
        if facts["codes"].get(name) != codes:
            what = "The store was made for another schema: the codes differ"
            raise InputError(what, f"{path}, column {name}", _AGAIN)


def _mapped(path: Path, facts: dict[str, Any], schema: Schema) -> pa.Table:
    """schema: of the records"""
    parts = [ipc.open_stream(pa.memory_map(str(path / name))).read_all() for name in facts["parts"]]
    plain = pa.concat_tables(parts) if parts else pa.table({})
    columns, fields = [], []
    for name in plain.column_names:
        if name == schema.unit or name in schema.column_names():
            columns.append(plain[name])
            fields.append(plain.field(name))
    for place, name in enumerate(facts["facts"]["codes"]):
        if name in schema.column_names():
            sets = _mapped_sets(path, CodeFiles.of(place), facts["rows"])
            columns.append(sets.lists(checked=True))
            fields.append(sets.field(name))
    lacking = [name for name in schema.column_names() if name not in {field.name for field in fields}]
    if lacking:
        raise InputError("The store lacks a column of the schema", f"{path}, column {lacking[0]}", _AGAIN)
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _mapped_sets(path: Path, files: CodeFiles, rows: int) -> CodeSets:
    names = tuple(json.loads(line) for line in (path / files.names).read_text(encoding="utf-8").splitlines())
    starts = mapped(path / files.starts, np.int64, rows + 1)
    rows_of_codes = CodeRows(starts, mapped(path / files.positions, np.int32, int(starts[-1])))
    for block in rows_of_codes.blocks():  # as Arrow would, which leaves the whole file in memory
        if len(block.positions) and not 0 <= block.positions.min() <= block.positions.max() < len(names):
            raise InputError("The store is damaged: a code has no name", str(path / files.positions), _AGAIN)
    return CodeSets(rows_of_codes, names)
