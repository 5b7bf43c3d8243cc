"""Codes of two tables are compared by their prevalences and by how often two of them occur together."""

import statistics
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.evaluate import code_distances, code_figures, code_view
from tests.conftest import examples
from tests.evaluate.test_code_columns import KINDS, VOCABULARY, codes_schema, codes_table, known, ranked, tables


def both(lists, first, second):
    return sum({first, second} <= row for row in known(lists)) / max(1, len(lists))


@settings(max_examples=examples(150))
@given(tables, tables, st.sampled_from(KINDS), st.integers(0, 12), st.integers(1, 5), st.integers(0, 5))
def test_distances_are_those_of_shares_counted_by_hand(lists, real, kind, cut, block, most):
    view = code_view(codes_schema(), codes_table(real), most)
    assert view is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_figures, "_BLOCK_ROWS", block)
        found = code_distances(codes_table(lists, kind, cut), codes_table(real), view)["dx"]
    counts, real_counts = ([sum(code in row for row in known(part)) for code in VOCABULARY] for part in (lists, real))
    errors = [
        abs(count / max(1, len(lists)) - real_count / max(1, len(real)))
        for count, real_count in zip(counts, real_counts, strict=True)
    ]
    assert found["mae"] == pytest.approx(statistics.mean(errors), abs=1e-15)
    assert found["max_abs"] == pytest.approx(max(errors), abs=1e-15)
    if len(set(counts)) == 1 or len(set(real_counts)) == 1:
        assert found["r"] is None
    else:
        assert found["r"] == pytest.approx(statistics.correlation(counts, real_counts), abs=1e-12)
    pairs = [abs(both(lists, *pair) - both(real, *pair)) for pair in combinations(ranked(real)[:most], 2)]
    assert found["pairs_mae"] == (pytest.approx(statistics.mean(pairs), abs=1e-15) if pairs else None)


def test_right_prevalences_and_wrong_pairs_are_told_apart():
    real = [["I10", "E11"], []] * 10
    apart = [["I10"], ["E11"]] * 10
    view = code_view(codes_schema(), codes_table(real))
    assert view is not None
    found = code_distances(codes_table(apart), codes_table(real), view)["dx"]
    assert (found["mae"], found["max_abs"]) == (0, 0)
    assert found["pairs_mae"] == pytest.approx(0.5 / 10)
