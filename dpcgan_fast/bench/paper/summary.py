"""The comparison as a table: means over the runs of each system, with intervals where there are several."""

from collections.abc import Iterator, Sequence
from typing import Any

from dpcgan_fast.bench.paper.cells import REAL
from dpcgan_fast.bench.paper.spreads import order_of, runs_of, spread_of
from dpcgan_fast.bench.paper.systems import AUTO_MORE, SYSTEMS
from dpcgan_fast.bench.paper.targets import targets_markdown
from dpcgan_fast.bench.paper.yardsticks import yardsticks_markdown
from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.evaluate.learners import LEARNER_NAMES
from dpcgan_fast.evaluate.spread import Spread

_PUBLISHED_STEPS = 4000  # see `dpcgan_fast.train.default_settings`


def groups(cells: Sequence[dict[str, Any]], data: str) -> Iterator[tuple[Any, str, list[dict[str, Any]]]]:
    """Epsilon, system and runs of each row of a table: by epsilon, then in the order of the systems; real rows last."""
    own = [cell for cell in cells if cell["data"] == data]
    finite = sorted({cell["epsilon"] for cell in own if cell["epsilon"] is not None}, key=order_of)
    for epsilon in finite:
        for system in SYSTEMS:
            if runs := runs_of(own, data, system, epsilon):
                yield epsilon, system, runs
    if runs := runs_of(own, data, REAL, None):
        yield None, REAL, runs


def _text(found: Spread | None, digits: int = 3) -> str:
    return "-" if found is None else found.text(digits)


def _pair(runs: Sequence[dict[str, Any]], kind: str, learner: str) -> str:
    """AUROC / average precision."""
    found = [spread_of(runs, (kind, learner, score)) for score in ("auroc", "ap")]
    return "-" if None in found else " / ".join(_text(one) for one in found)


def supervised(cells: Sequence[dict[str, Any]], data: str) -> str:
    """Synthetic-to-real of the three learners, and synthetic-to-synthetic of gradient boosting."""
    rows = [
        [_epsilon(epsilon), _name(system, runs), *(_pair(runs, "tstr", learner) for learner in LEARNER_NAMES),
         _text(spread_of(runs, ("tstr", "gb", "accuracy"))), _pair(runs, "sts", "gb"), str(len(runs))]
        for epsilon, system, runs in groups(cells, data)
    ]  # fmt: skip
    return table(["epsilon", "rows of", *LEARNER_NAMES.values(), "accuracy", "within the rows", "runs"], rows)


# Of all tables, and of those whose cells have them.
_LIKENESS = {
    "probability: r": ("dimension_probability", "r"),
    "probability: error": ("dimension_probability", "mae"),
    "prediction: score": ("dimension_prediction", "ap"),
    "prediction / real": ("dimension_prediction", "ratio"),
    "MMD": ("mmd",),
    "KS": ("ks",),
    "pairs of columns": ("pairs_tv_mean",),
    "told apart": ("c2st",),
}
_OF_SOME = {
    "correlations: error": ("correlation_mae",),
    "told apart by 20 quantile bins": ("c2st_quantiles",),
    "signals told apart": ("c2st_signals",),
    "co-occurrence error": ("cooccurrence_error",),
    "violated implications": ("violated_implications",),
    "rare codes right": ("rare_recall",),
    "numbers of codes: KS": ("sizes_ks",),
    "outcome from all codes": ("outcome_auroc",),
    "told apart, large test": ("c2st_large",),
}


def unsupervised(cells: Sequence[dict[str, Any]], data: str) -> str:
    """Dimension by dimension, and both tables as wholes."""
    known = {name for cell in cells if cell["data"] == data for name in cell["figures"]}
    columns = _LIKENESS | {text: path for text, path in _OF_SOME.items() if path[0] in known}
    rows = [
        [_epsilon(epsilon), _name(system, runs), *(_text(spread_of(runs, path)) for path in columns.values())]
        for epsilon, system, runs in groups(cells, data)
    ]
    return table(["epsilon", "rows of", *columns], rows)


def _epsilon(epsilon: Any) -> str:
    return "-" if epsilon is None else f"{epsilon:g}" if isinstance(epsilon, float | int) else str(epsilon)


def _name(system: str, runs: Sequence[dict[str, Any]]) -> str:
    """A yardstick goes by what was best in each run."""
    sources = sorted({run["figures"].get("drawn_from", "") for run in runs} - {""})
    return f"{system}: {', '.join(sources)}" if sources else system


def _took(cells: Sequence[dict[str, Any]]) -> str:
    """Time on the clock and of processors, in seconds below two minutes."""
    fit, judge, processor = (sum(cell["seconds"][key] for cell in cells) for key in ("fit", "judge", "processor"))
    each, unit = (1, "seconds") if fit + judge < 120 else (60, "minutes")
    return f"{(fit + judge) / each:.0f} {unit}, {processor / each:.0f} of processors"


def paper_markdown(results: dict[str, Any]) -> str:
    """All tables, with what is needed to read them."""
    cells, settings = results["cells"], results["settings"]
    data = list(dict.fromkeys(cell["data"] for cell in cells))
    left = [f"- left out: {name}: {why}" for name, why in results["left_out"].items()]
    parts = [
        "# The published system beside its rivals\n",
        f"Made by `dpcgan bench --suite paper`: {len(cells)} runs, {_took(cells)}. "
        f"{machine_text(results['machine'])}.\n",
        "\n".join(
            [
                f"Delta {settings['delta']:g}; every mechanism is composed. Published and fully connected networks "
                f"take {settings['steps']:,} steps of the critic and half as many of the autoencoder (by default the "
                f"published presets take {_PUBLISHED_STEPS:,}, as with `--steps {_PUBLISHED_STEPS}`), PATE-GAN "
                f"{settings['pate_gan_rounds']:,} rounds.",
                f"As many rows are drawn as there are training rows, but for `{AUTO_MORE}`. Gradient boosting learns "
                f"from all of them, forests and logistic regression from at most {settings['learned_rows']:,}; they "
                f"see at most {settings['seen_codes']:,} codes, the column `outcome from all codes` all of them.",
                "The large two-sample test of codes is run where the small one reads less than "
                f"{settings['told_at_once']:g}.",
                "Where there are several runs, ± is half a 95 % interval: over runs, or over the means of noise seeds, "
                "whichever is wider, for runs of one seed have the same noise on all splits. It is for these splits: "
                "another one differs by about as much as the interval of the real rows, which is over splits.",
                "These figures are not differentially private, and noise is seeded: the data are public or made up.",
                *left,
            ]
        )
        + "\n",
        table(["system", "is"], [[name, system.about] for name, system in SYSTEMS.items()]),
    ]
    parts += ["## Targets\n", *targets_markdown(cells), "## Beside the baselines\n", *yardsticks_markdown(cells)]
    for name in data:
        parts += [
            f"## {name}\n",
            "AUROC / average precision of the label on real held-out rows, by what classifiers learned from; and of "
            "gradient boosting within the synthetic rows.\n",
            supervised(cells, name),
            unsupervised(cells, name),
        ]
    return "\n".join(parts)
