"""A made-up world of medical codes: patients with conditions, codes that come with these, implications, an outcome.

MIMIC-shaped: 1,071 codes in 18 chapters, about 1 % of which a patient has. A patient has some of 40 conditions, which
come together by 5 latent dimensions; a code shows by noisy-or of the conditions, scaled by how severe the case is.
Newborns have a chapter of their own. Some codes imply others, and an outcome depends on single codes and on pairs.
It favours models of conditions, such as mixtures, over others; real diagnoses need not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from scipy.special import erfinv, expit

from dpcgan_fast.data.schema import Schema

CODES, PATIENTS = 1071, 50_000
OUTCOME, COLUMN, MOST_CODES = "outcome", "dx", 80
OUTCOME_RATE = 0.10
_WORLD_SEED, _FIRST_PATIENTS_SEED = 12345, 777  # the world is fixed, a seed draws its patients
_CONDITIONS, _CHAPTERS, _DIMENSIONS, _IMPLICATIONS = 40, 18, 5, 60
_MOST_FREQUENT, _LEAST_FREQUENT, _OFFSET = 0.38, 0.38 / 2000, 30  # of codes: a Zipf-Mandelbrot law
_NEWBORNS, _SEVERITY, _BACKGROUND = 0.16, 0.45, 0.08
_BLOCK = 5000  # patients; the draws follow from it
_FITTING_PATIENTS, _FITTING_ROUNDS = 6000, 25


@dataclass(frozen=True)
class CodeWorld:
    """What all patients have in common; codes are numbered by their frequency here, and by `public_order` in tables.

    conditions:   (conditions, codes) float32, the rates at which a condition brings codes
    comorbidity:  (conditions, dimensions); thresholds: (conditions,) of a standard normal
    newborn:      (codes,) bool, codes of newborns
    scale:        (codes,) float32, which brings each code to its frequency
    implications: pairs (code, implied code)
    risky, risks: codes of the outcome and their weights; pairs, pair_risks: likewise of pairs of codes
    public_order: (codes,) the codes in the order of a table's vocabulary: by chapter
    """

    conditions: np.ndarray
    comorbidity: np.ndarray
    thresholds: np.ndarray
    newborn: np.ndarray
    scale: np.ndarray
    implications: tuple[tuple[int, int], ...]
    risky: np.ndarray
    risks: np.ndarray
    pairs: tuple[tuple[int, int], ...]
    pair_risks: np.ndarray
    public_order: np.ndarray

    def public_implications(self) -> list[tuple[int, int]]:
        """The implications by places in the vocabulary of a table."""
        place = np.argsort(self.public_order)
        return [(int(place[code]), int(place[implied])) for code, implied in self.implications]

    def patients(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (count, codes) and outcome (count,), 0 or 1 uint8; they follow from count and seed."""
        rng = np.random.default_rng(seed + _FIRST_PATIENTS_SEED)
        has = np.zeros((count, len(self.scale)), np.uint8)
        for block in _blocks(count):
            rows = has[block]
            chance = 1 - np.exp(-_rates(self, len(rows), rng) * self.scale)
            rows[:] = rng.random(rows.shape, dtype=np.float32) < chance
        for _ in range(2):  # implications of implications
            for code, implied in self.implications:
                has[has[:, code] == 1, implied] = 1
        empty = has.sum(axis=1) == 0
        has[empty, rng.choice(20, empty.sum())] = 1
        risk = has[:, self.risky] @ self.risks
        risk += sum(own * has[:, i] * has[:, j] for (i, j), own in zip(self.pairs, self.pair_risks, strict=True))
        risk = 2.2 * risk + 0.03 * has.sum(axis=1)
        outcome = rng.random(count) < expit(risk + _intercept(risk))
        return has[:, self.public_order], outcome.astype(np.uint8)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK))


def _intercept(risk: np.ndarray) -> float:
    """What brings the mean outcome to its rate, by bisection."""
    lower, upper = -15.0, 10.0
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if expit(risk + middle).mean() < OUTCOME_RATE else (lower, middle)
    return (lower + upper) / 2


def _rates(world: CodeWorld, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rates of the codes of some patients before they are scaled: (count, codes) float32."""
    latent = rng.normal(size=(count, _DIMENSIONS))
    noise = rng.normal(size=(count, len(world.thresholds)))
    has = (latent @ world.comorbidity.T + noise > world.thresholds).astype(np.float32)
    severity = np.exp(rng.normal(size=count) * _SEVERITY + 0.10 * latent[:, 0]).astype(np.float32)
    born = (rng.random(count) < _NEWBORNS).astype(np.float32)[:, None]
    rates = severity[:, None] * (_BACKGROUND + has @ world.conditions)
    return rates * np.where(world.newborn, 0.02 + 0.98 * born, 1 - 0.97 * born).astype(np.float32)


@lru_cache(maxsize=1)
def code_world() -> CodeWorld:
    """The world. Its numbers are drawn in a fixed order, on which the tables depend."""
    rng = np.random.default_rng(_WORLD_SEED)
    slope = np.log(_MOST_FREQUENT / _LEAST_FREQUENT) / np.log((CODES + _OFFSET) / (1 + _OFFSET))
    frequencies = _MOST_FREQUENT * ((1 + _OFFSET) / (np.arange(1, CODES + 1) + _OFFSET)) ** slope
    chapter = rng.choice(_CHAPTERS, CODES, p=rng.dirichlet(np.full(_CHAPTERS, 3.0)))
    homes = rng.choice(_CHAPTERS, _CONDITIONS, p=np.bincount(chapter, minlength=_CHAPTERS) / CODES)
    conditions = np.zeros((_CONDITIONS, CODES))
    for own, home in zip(conditions, homes, strict=True):  # dense in its chapter, sparse elsewhere
        inside = (chapter == home) & (rng.random(CODES) < 0.45)
        outside = rng.random(CODES) < 0.015
        own[inside] = rng.gamma(0.5, 12.0, inside.sum())
        own[outside] = rng.gamma(0.5, 10.0, outside.sum())
    prevalence = np.clip(rng.beta(0.9, 7.0, _CONDITIONS), 0.02, 0.45)
    comorbidity = rng.normal(size=(_CONDITIONS, _DIMENSIONS)) * 0.75
    thresholds = -np.sqrt(1 + (comorbidity**2).sum(axis=1)) * np.sqrt(2) * erfinv(2 * prevalence - 1)
    implications = _drawn_implications(chapter, frequencies, rng)
    newborn = (chapter == 0) | (rng.random(CODES) < 0.01)
    unscaled = CodeWorld(
        conditions.astype(np.float32), comorbidity, thresholds, newborn, np.ones(CODES, np.float32), implications,
        np.empty(0), np.empty(0), (), np.empty(0), np.empty(0),
    )  # fmt: skip
    scale = _fitted_scale(_rates(unscaled, _FITTING_PATIENTS, rng), frequencies)
    risky = rng.choice(np.arange(5, 250), 30, replace=False)
    risks = rng.normal(0.35, 0.75, 30)
    drawn = [rng.choice(risky[:18], 2, replace=False) for _ in range(14)]
    pair_risks = rng.normal(0.6, 1.2, 14)
    pairs = tuple((int(i), int(j)) for i, j in drawn)
    order = np.lexsort((rng.random(CODES), chapter))
    return CodeWorld(
        unscaled.conditions, comorbidity, thresholds, newborn, scale, implications, risky, risks, pairs, pair_risks,
        order,
    )  # fmt: skip


def _drawn_implications(
    chapter: np.ndarray, frequencies: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    """Pairs of codes of a chapter, the implied one at least three times as frequent."""
    found: list[tuple[int, int]] = []
    for code in rng.permutation(np.arange(25, 500)):
        implied = np.nonzero((chapter == chapter[code]) & (frequencies > 3 * frequencies[code]))[0]
        if len(implied) and len(found) < _IMPLICATIONS:
            found.append((int(code), int(rng.choice(implied))))
    return tuple(found)


def _fitted_scale(rates: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Factors (codes,) float32 by which codes with these rates (patients, codes) become as frequent as they should."""
    scale = frequencies / rates.mean(axis=0)
    for _ in range(_FITTING_ROUNDS):
        scale *= frequencies / (1 - np.exp(-rates * scale)).mean(axis=0)
    return scale.astype(np.float32)


def vocabulary() -> list[str]:
    """Names of the codes in the order of a table's vocabulary."""
    return [f"C{place:04}" for place in range(CODES)]


def code_table(patients: int = PATIENTS, seed: int = 0) -> pa.Table:
    """Patients as a table that `code_schema` describes: a list of codes each, and the outcome."""
    has, outcome = code_world().patients(patients, seed)
    rows, places = np.nonzero(has)
    starts = np.searchsorted(rows, np.arange(patients + 1))
    names = pa.array(vocabulary()).take(pa.array(places))
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), names)
    return pa.table({COLUMN: lists, OUTCOME: outcome.astype(np.int64)})


def code_schema(n_units: int, outcome: bool = True) -> Schema:
    """The public schema of a training part of so many patients, each a row; with the outcome or with codes alone."""
    codes = {"name": COLUMN, "type": "codes", "vocabulary": vocabulary(), "max_codes": MOST_CODES}
    label = [{"name": OUTCOME, "type": "binary"}] if outcome else []
    values = {"version": 1, "unit": None, "n_units": n_units, "label": OUTCOME if outcome else None}
    return Schema.from_dict({**values, "columns": [codes, *label]})
