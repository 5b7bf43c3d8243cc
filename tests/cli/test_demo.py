"""The demo keeps its held-out rows out of training."""

from dpcgan_fast.cli import run, using
from dpcgan_fast.data.datasets import load_support2, train_test_split
from dpcgan_fast.errors import InputError


def test_the_demo_trains_on_one_part_and_evaluates_on_the_other(monkeypatch, tmp_path):
    train, test = train_test_split(load_support2())
    fitted, evaluated = [], []

    class QuickModel:
        """Stands for a model, and notes what it is fitted to."""

        arrow_schema = train.schema
        draws_from_statistics = True

        def __init__(self, *_, **__):
            pass

        def fit(self, table, *_, **__):
            fitted.append(table)
            return self

        def sample(self, rows):
            return train.slice(0, min(rows, 10))

    def evaluate_run(_model, _schema, _synthetic, test_table, train_table, _out):
        evaluated.extend([test_table, train_table])
        raise InputError("Seen enough", "demo", "")

    monkeypatch.setattr(using, "DPCGAN", QuickModel)
    monkeypatch.setattr(using, "evaluate_run", evaluate_run)
    out = tmp_path / "demo"
    out.mkdir()
    assert run(["demo", "--out", str(out)]) == 2
    assert fitted[0].equals(train)
    assert evaluated[0].equals(test)
    assert evaluated[1].equals(train)
