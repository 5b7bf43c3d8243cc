"""Files and folders of files as sources of rows: CSV, Parquet, folders of either, and folders in the MEDS standard."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpcgan_fast.data.csv_reading import open_csv
from dpcgan_fast.data.opened import UNREADABLE, Opened, plain_types, refuse_repeated_names, without_dictionaries
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import open_data, unreadable

_PARQUET_MAGIC = b"PAR1"
_PARQUET_ENDINGS = (".parquet", ".pq")
# Of the files in a folder; a file that is given by itself may have any ending.
_SHARD = re.compile(r"(?P<stem>.+)\.(parquet|pq|(?P<text>csv|tsv)(\.(gz|bz2|zst|lz4|br))?)", re.IGNORECASE)
_LEFT_BY_TOOLS = "._"  # first letters of names that tools leave beside data, such as _SUCCESS
_BATCH_ROWS = 1 << 17  # of Parquet
_LEAST = 4  # bytes of a value in memory, of which a file may have one for thousands that are equal
_FOLDER = "Give a folder of CSV files alone or of Parquet files alone, all with the same columns."
_MEDS = "In the MEDS standard, all events are in Parquet files beneath the folder `data`."
MEDS_UNIT, MEDS_CODE = "subject_id", "code"  # columns of the standard


def open_path(path: Path) -> Opened:
    """The table in a file or folder. Raises InputError if there is none."""
    if not path.is_dir():
        return open_file(path)
    return _open_folder(path, _meds_shards(path) if is_meds(path) else _shards(path))


def is_meds(path: Path) -> bool:
    """Whether a path is a folder in the MEDS standard: its events are beneath `data`, with `metadata` beside it."""
    return (path / "data").is_dir() and (path / "metadata").is_dir()


def _meds_shards(folder: Path) -> list[Path]:
    shards = sorted(
        path for path in (folder / "data").rglob("*") if path.is_file() and path.name[0] not in _LEFT_BY_TOOLS
    )
    for path in shards:
        if path.suffix.lower() not in _PARQUET_ENDINGS:
            raise InputError(
                "The folder holds something that is not Parquet", str(path), "MEDS has Parquet files alone."
            )
    if not shards:
        raise InputError("The folder holds no data file", str(folder / "data"), "MEDS has its Parquet files there.")
    return shards


def _shards(folder: Path) -> list[Path]:
    """All data files of a folder, in the order of their names."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name[0] not in _LEFT_BY_TOOLS)
    except OSError as error:
        raise unreadable(error, folder) from None
    if not paths:
        raise InputError("The folder holds no data file", str(folder), _FOLDER)
    first: dict[str, Path] = {}  # by name without the ending
    formats: set[bool] = set()
    for path in paths:
        shard = _SHARD.fullmatch(path.name)
        if not shard:
            raise InputError("The folder holds something that is neither CSV nor Parquet", str(path), _FOLDER)
        formats.add(shard["text"] is None)
        twin = first.setdefault(shard["stem"], path)
        if twin is not path:  # the same people would count twice
            what = f"A file has the name of {twin.name} but for the ending, and may hold the same rows"
            raise InputError(what, str(path), "Leave one of them, or give them different names.")
    if len(formats) > 1:  # cells of the one are text, of the other typed
        raise InputError("The folder holds both CSV and Parquet files", str(folder), _FOLDER)
    return paths


def _open_folder(folder: Path, paths: list[Path]) -> Opened:
    """Files as one table, one after another."""
    parts = [open_file(path) for path in paths]
    for part in parts:
        refuse_repeated_names(part)
        if set(part.names) != set(parts[0].names):  # not named: without a header, names are a person's row
            raise InputError(f"A file has other columns than {paths[0].name}", part.where, _FOLDER)

    def types(wanted: list[str]) -> pa.Schema:
        schemas = [part.types(wanted) for part in parts]
        for name in wanted:
            try:
                own = [pa.schema([schema.field(name)]) for schema in schemas]
                pa.unify_schemas(own, promote_options="permissive")
            except pa.ArrowException:
                what, where = "A column has different types in the files of a folder", f"{folder}, column {name}"
                raise InputError(what, where, "Write the files again, with one type for each column.") from None
        return pa.unify_schemas(schemas, promote_options="permissive")

    def as_common(table: pa.Table, common: pa.Schema) -> pa.Table:
        try:
            return without_dictionaries(table).cast(common)
        except pa.ArrowInvalid:  # whole numbers that floats cannot tell apart
            what = "A column has whole numbers in some files of a folder and others in some that cannot hold them"
            raise InputError(what, str(folder), "Write the files again, with one type for each column.") from None

    def read(wanted: list[str]) -> pa.Table:
        common = types(wanted)
        return pa.concat_tables([as_common(part.read(wanted), common) for part in parts])

    def batches(wanted: list[str]) -> Iterator[pa.Table]:
        common = types(wanted)
        for part in parts:
            yield from (as_common(batch, common) for batch in part.batches(wanted))

    return Opened(
        str(folder), parts[0].names, read, types, batches, lambda wanted: sum(part.size(wanted) for part in parts)
    )


def open_file(path: Path) -> Opened:
    """The table in a file, by its first bytes. Raises InputError if there is none."""
    try:
        with open_data(path) as file:
            head = file.read(len(_PARQUET_MAGIC))
    except OSError as error:
        raise unreadable(error, path) from None
    if not head:
        raise InputError("The data file is empty", str(path), "Give a CSV or Parquet file with a header and rows.")
    if head == _PARQUET_MAGIC:
        return _open_parquet(path)
    if path.suffix.lower() in _PARQUET_ENDINGS:
        how = "Write it again as Parquet, or give it the ending .csv if it is a CSV file."
        raise InputError("The file is not a Parquet file, as its ending says", str(path), how)
    return open_csv(path)


def _open_parquet(path: Path) -> Opened:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            metadata = file.metadata
    except UNREADABLE as error:
        raise unreadable(error, path) from None

    def read(wanted: list[str]) -> pa.Table:
        try:
            with pq.ParquetFile(path) as file:
                return _validated(file.read(columns=wanted).select(wanted))
        except UNREADABLE as error:
            raise unreadable(error, path) from None

    def batches(wanted: list[str]) -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                    yield without_dictionaries(_validated(pa.table(batch).select(wanted)))
        except UNREADABLE as error:
            raise unreadable(error, path) from None

    def types(wanted: list[str]) -> pa.Schema:
        return plain_types(pa.schema([schema.field(name) for name in wanted]))

    def size(wanted: list[str]) -> int:
        chosen = set(wanted)
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        chunks = (group.column(i) for group in groups for i in range(group.num_columns))
        return sum(
            max(chunk.total_uncompressed_size, _LEAST * chunk.num_values)
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] in chosen
        )

    return Opened(str(path), tuple(schema.names), read, types, batches, size)


def _validated(table: pa.Table) -> pa.Table:
    """A damaged file can hold offsets and text that would crash a later reader."""
    table.validate(full=True)
    return table
