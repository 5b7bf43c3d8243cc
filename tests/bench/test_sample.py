"""The benchmark of sampling: a row for each table and format, and what is left out is said."""

from dpcgan_fast.bench import bench_sample, sample


def test_each_format_is_timed_for_each_table_that_is_here(monkeypatch, tmp_path):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sample, "_ROWS", 50)
    monkeypatch.setattr(sample, "_STEPS", 1)
    said: list[str] = []
    rows = bench_sample("cpu", said.append)
    assert [(row["data"], row["format"]) for row in rows] == [("support2", ".parquet"), ("support2", ".csv")]
    assert all(row["rows_per_second"] > 0 and row["columns"] > 30 for row in rows)
    assert "epileptic_seizure" in said[-1]
