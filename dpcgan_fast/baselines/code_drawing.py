"""All that codes of records are drawn from, once everything is settled: it can be kept in a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpcgan_fast.baselines.code_races import CodeKinds, raced
from dpcgan_fast.baselines.code_repair import ModelRecords, PairRepair
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.privacy.releases import number_edges

_MENDED_TOGETHER = 4096  # records at least


@dataclass(frozen=True)
class CodeDrawing:
    """A model of records, and what is mended in what it draws.

    chances: (class_count, vocabulary) float64, from `settled_chances`
    repair:  None where no pairs were counted
    """

    kinds: CodeKinds
    chances: np.ndarray
    repair: PairRepair | None = None

    def records(self, classes: np.ndarray, rng: np.random.Generator) -> ModelRecords:
        """Records as the model has them, of these classes, (rows,) int64."""
        drawn = raced(self.kinds, self.chances, classes, rng)
        sets = CodeRows.from_entries(drawn.rows, drawn.positions, len(classes))
        return ModelRecords(sets, classes, drawn.clusters, self.kinds.ratios)

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> CodeRows:
        """The codes of new records of these classes, (rows,) int64.

        Pairs are mended among many records, also where few are asked for: a pair that one record in a thousand has
        comes to no whole number of ten.
        """
        if self.repair is None or not len(classes):
            return self.records(classes, rng).sets
        drawn = self.records(np.resize(classes, max(len(classes), _MENDED_TOGETHER)), rng)
        return self.repair.mended(drawn, int(rng.integers(2**62))).take(np.arange(len(classes)))

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers, by the names of their fields."""
        found = {"chances": self.chances, **vars(self.kinds)}
        if self.repair is not None:
            found |= {f"repair.{name}": np.atleast_1d(value) for name, value in vars(self.repair).items()}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], vocabulary: int, most: int) -> "CodeDrawing":
        """What `arrays` took apart. Raises KeyError or ValueError for anything else.

        vocabulary: its number of codes; most: codes that a record has at most
        """
        real = dict.fromkeys(("sizes", "within", "chances"), np.float64)
        _refuse_other_types(arrays, {"ratios": np.float32, **real})
        kinds, chances = CodeKinds(arrays["sizes"], arrays["ratios"], arrays["within"]), arrays["chances"]
        classes, clusters = len(chances), len(kinds.ratios)
        shapes = {
            "chances": (classes, vocabulary),
            "ratios": (clusters, vocabulary),
            "sizes": (classes, clusters, len(number_edges(most))),
            "within": (classes, most + 1),
        }
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        if wrong:
            raise ValueError(f"Expected other shapes of {', '.join(wrong)}.")
        shares = (kinds.sizes, kinds.within, kinds.ratios)
        if not all(np.isfinite(own).all() and (own >= 0).all() for own in shares) or not (chances < np.inf).all():
            raise ValueError("Expected finite shares that are not negative.")
        if not (kinds.ratios > 0).all():
            raise ValueError("Expected positive ratios.")
        repair = None
        if any(name.startswith("repair.") for name in arrays):
            counted, codes, first, second, shares = (
                arrays[f"repair.{name}"] for name in ("counted", "codes", "first", "second", "shares")
            )
            repair = PairRepair(counted, codes, first, second, shares, int(arrays["repair.full"].item()))
            whole = dict.fromkeys(("counted", "codes", "first", "second"), np.int64)
            _refuse_other_types(vars(repair), {**whole, "shares": np.float64})
            repair.check(classes, vocabulary)
        return cls(kinds, chances, repair)


def _refuse_other_types(arrays: Mapping[str, np.ndarray], types: Mapping[str, type]) -> None:
    """Raises KeyError or ValueError unless arrays of these names are there, have these types and a dimension."""
    for name, kind in types.items():
        if arrays[name].dtype != kind or arrays[name].ndim == 0:
            raise ValueError(f"Expected {name} of another type.")
