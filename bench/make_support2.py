"""Makes the embedded SUPPORT2 table from the public CSV file: `python bench/make_support2.py [support2.csv.gz]`.

The same CSV file and the same pyarrow give the same bytes. What is kept and why stands in the data card.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpcgan_fast.data import cells
from dpcgan_fast.data.datasets import dataset_path, support2_schema
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.schema import Column

OUT = Path(__file__).resolve().parents[1] / "dpcgan_fast" / "data" / "embedded" / "support2.parquet"


def typed(column: Column, texts: pa.ChunkedArray) -> pa.Array:
    """One column with the type that the schema gives it; every category must be in the schema's list."""
    if column.type == "categorical":
        codes = cells.category_codes(texts, column.classes())
        if (codes == cells.UNKNOWN).any():
            raise ValueError(f"column {column.name} has a category that the schema does not list")
        return pa.array(column.classes()).take(pa.array(codes, mask=codes == cells.MISSING))
    numbers = cells.numeric_values(texts, column.name)
    missing = np.isnan(numbers)
    if column.type == "binary" or column.integer:
        whole = np.where(missing, 0.0, numbers)
        if (whole != np.rint(whole)).any():
            raise ValueError(f"column {column.name} is to hold whole numbers and does not")
        return pa.array(whole.astype(np.int64), mask=missing)
    return pa.array(numbers, mask=missing)


def make(source: Path, out: Path) -> tuple[str, ...]:
    """Writes the Parquet file and returns the names of the columns that were left out."""
    columns = support2_schema().columns
    table, left_out = read_table(source, [column.name for column in columns])
    table = pa.table({column.name: typed(column, table[column.name]) for column in columns})
    pq.write_table(table, out, compression="zstd", compression_level=19)
    return left_out


def main() -> None:
    """Makes the table, and says which columns it leaves out."""
    parser = argparse.ArgumentParser(description="Makes the embedded SUPPORT2 table from the public CSV file.")
    parser.add_argument("source", nargs="?", type=Path, help="by default the registered data set")
    given = parser.parse_args()
    left_out = make(given.source or dataset_path("support2"), OUT)
    print(f"{OUT.name}: {OUT.stat().st_size} bytes; left out: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
