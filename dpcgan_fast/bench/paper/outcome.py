"""The outcome from all codes at once: sparse logistic regression on all rows."""

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dpcgan_fast.data.public_cells import codes, label_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.code_structure import Flags, code_flags

# With which the targets were set.
_INVERSE_PENALTY, _STEPS = 0.05, 60


def outcome_auroc(table: pa.Table, test: pa.Table, schema: Schema) -> float | None:
    """AUROC, on test rows, of logistic regression that learned a binary label from all codes of all rows of a table.

    A table with one class gives 0.5. None without a label or without codes, or where the test rows have one class.
    """
    label = label_of(schema)
    if label is None or not schema.codes_columns():
        return None
    (x, y), (x_test, y_test) = ((_codes(part, schema), codes(part, label)) for part in (table, test))
    if len(np.unique(y_test)) < 2:
        return None
    if len(np.unique(y)) < 2:
        return 0.5
    learner = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_STEPS).fit(x, y)
    return float(roc_auc_score(y_test, learner.decision_function(x_test)))


def _codes(table: pa.Table, schema: Schema) -> Flags:
    return sparse.hstack([code_flags(table, column) for column in schema.codes_columns()], format="csr")
