"""Why a figure is null: what cannot be computed is said, not left to be guessed."""

from collections.abc import Mapping
from typing import Any

from dpcgan_fast.evaluate import code_structure, spectra, two_sample
from dpcgan_fast.evaluate.utility import MIN_OF_CLASS


def null_notes(figures: Mapping[str, Any], subgroups: list[Any] | None) -> list[str]:
    """A sentence for each figure of the synthetic rows that is null, and for subgroups where there are none.

    figures: of `metrics.json`
    """
    notes = []
    if figures["c2st"] is None:
        notes.append(
            f"c2st, c2st_binned and c2st_by are null: one of the tables has fewer than {two_sample.MIN_ROWS} rows."
        )
    for name, of_column in figures["codes"].items():
        empty = of_column["sizes_ks"] is None
        reasons = {"sizes_ks": code_structure.REASONS["sizes_ks"]} if empty else code_structure.REASONS
        also = ", like all figures of what occurs together" if empty else ""
        missing = {key: why for key, why in reasons.items() if of_column[key] is None}
        notes += [f"{key} of the codes of {name} is null{also}: {why}." for key, why in missing.items()]
    for name, of_signal in figures["spectra"].items():
        if of_signal["spectrum_db"] is None:
            notes.append(f"spectrum_db and autocorrelation_mae of signal {name} are null: {spectra.TOO_FEW}.")
    if subgroups is not None and not subgroups:
        notes.append(
            "There are no subgroups: the schema has no other binary or categorical column with few categories of which "
            f"one has {MIN_OF_CLASS} test rows with and {MIN_OF_CLASS} without a class of the label."
        )
    return notes
