"""How well classifiers do within groups of people: an average may hide that synthetic rows serve some of them badly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from dpcgan_fast.data.public_cells import coded_names, codes, modelled_columns
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.utility import MIN_OF_CLASS, Predictions, auroc_uncertainty
from dpcgan_fast.evaluate.verdict import HEADLINE_LEARNER

MOST_COLUMNS = 8
MOST_GROUPS = 10  # categories of a column that is looked at


def subgroup_scores(found: Mapping[str, Predictions | None], schema: Schema) -> list[dict[str, Any]]:
    """AUROC of gradient boosting within the groups that categorical and binary columns of the schema make.

    found:  by name, predictions on the same test rows of classifiers that learned from different tables; None where
            there are none. They learned from whole tables, whatever the group.
    schema: the first 8 columns of at most 10 categories are looked at, but for the label

    Returns, for each group with at least 20 test rows of a class and 20 of the rest, "column", "group", "rows" and
    "positives" (None with several classes), the AUROC by name, None where there are no predictions, and "uncertainty",
    half the width of a 95 % interval of the first of them, which the size of the group alone decides (None with several
    classes). Of several classes it is the mean over those with enough rows, each against the rest.
    """
    present = [one for one in found.values() if one is not None]
    if not present:
        return []
    test, truth = present[0].test, present[0].truth
    groups = []
    for column in _columns(schema):
        of_row = codes(test, column)
        for code, group in enumerate(coded_names(column)):
            members = of_row == code
            judged = [index for index in range(len(truth.names)) if _enough(truth.is_class(index)[members])]
            if not judged:
                continue
            scores = {
                name: None if one is None else float(np.mean([
                    roc_auc_score(truth.is_class(index)[members], one.probabilities[HEADLINE_LEARNER][members, index])
                    for index in judged
                ]))
                for name, one in found.items()
            }  # fmt: skip
            single = len(truth.names) == 1
            positives = int(truth.is_class(0)[members].sum())
            first = next(score for score in scores.values() if score is not None)
            width = auroc_uncertainty(first, positives, int(members.sum()) - positives) if single else None
            groups.append({
                "column": column.name, "group": group, "rows": int(members.sum()),
                "positives": positives if single else None, **scores, "uncertainty": width,
            })  # fmt: skip
    return groups


def _columns(schema: Schema) -> list[Any]:
    fit = [
        column
        for column in modelled_columns(schema)
        if column.name != schema.label and column.type != "numeric" and len(coded_names(column)) <= MOST_GROUPS
    ]
    return fit[:MOST_COLUMNS]


def _enough(of_class: np.ndarray) -> bool:
    return bool(min(of_class.sum(), len(of_class) - of_class.sum()) >= MIN_OF_CLASS)
