"""The privacy card: what was guaranteed, to whom, by which mechanisms, and on which assumptions."""

import math
from dataclasses import dataclass

from dpcgan_fast.privacy.accountant import PrivacySpent, epsilon_alone, in_whole
from dpcgan_fast.privacy.mechanism import Mechanism, release_shares
from dpcgan_fast.privacy.selection import Selection

NO_SUM = "These do not add up to what all lines cost together."
SETTINGS_ASSUMPTION = "The schema, the settings and the number of steps were chosen without looking at the data."


@dataclass(frozen=True)
class CardFacts:
    """What the card states.

    planned:     epsilon and delta that were asked for: the claim
    spent:       what the ledger composes to
    unit:        what one unit of privacy is, in words
    mechanisms:  from the ledger; a private selection, and beneath it what its chosen run took
    public:      facts that were given, such as bounds in the schema
    paid:        facts that were estimated from the data under the budget
    settings:    preset, budget shares, batch sizes, steps: chosen without the data
    seeded:      the noise can be reproduced, so nobody is protected
    stopped:     why fewer steps than planned were taken, or ""
    warnings:    what weakens the claim, a sentence each
    chosen:      how the settings were chosen, a sentence each, where a search chose them
    settings_assumption: what must be true of the settings
    composed:    a line of the ledger that stands for several Gaussian releases, None if there is none
    releases:    those releases
    """

    planned_epsilon: float
    delta: float
    spent: PrivacySpent
    unit: str
    mechanisms: list[Mechanism | Selection]
    public: list[str]
    paid: list[str]
    settings: list[str]
    seeded: bool = False
    stopped: str = ""
    warnings: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    settings_assumption: str = SETTINGS_ASSUMPTION
    composed: Mechanism | None = None
    releases: tuple[Mechanism, ...] = ()

    @property
    def private(self) -> bool:
        """Whether there is a guarantee at all."""
        return not self.seeded and math.isfinite(self.planned_epsilon)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the claim rests on and nothing proves."""
        return (*ASSUMPTIONS, self.settings_assumption)


ASSUMPTIONS = (
    "Neighbouring tables differ by adding or removing one unit, with all its rows.",
    "Each unit enters a batch independently with the stated sample rate (Poisson sampling, keyed by the operating "
    "system's random source).",
    "Noise comes from ChaCha20 keyed by the operating system, in double precision, rounded once to a public "
    "power-of-two grid; that the grid hides the rounding of the addition is an assumption, not a proof.",
    "What a row's loss draws for itself, such as the noise of its code, comes from torch's generator, seeded anew in "
    "each step by the operating system; that it is independent from row to row is an assumption.",
    "Running time, memory and errors are not covered: that the table has a row and can be read is taken as public.",
)


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.6g}"


def _mechanism_table(mechanisms: list[Mechanism | Selection], spent: PrivacySpent) -> list[str]:
    rows = []
    for m in in_whole(mechanisms):
        alone = epsilon_alone(m, spent)
        rows.append(
            f"| {m.mechanism} | {m.event} | {_number(m.sample_rate)} | {_number(m.noise_multiplier)} | {m.steps} "
            f"| {_number(m.max_grad_norm)} | {_number(m.delta)} | {'-' if alone is None else _number(alone)} |"
        )
    if any(isinstance(m, Selection) for m in mechanisms):
        rows += ["", "The private selection is what is accounted; the others ran inside it and cost nothing beyond it."]
    elif mechanisms:
        meaning = f"Epsilon alone is what a line would cost if it were all, at delta {_number(spent.delta)}."
        rows += ["", f"{meaning} {NO_SUM}"]
    head = "| mechanism | event | sample rate | noise multiplier | steps | sensitivity | delta of a threshold "
    return [head + "| epsilon alone |", "|---|---|---|---|---|---|---|---|", *rows]


def _composed_table(line: Mechanism, releases: tuple[Mechanism, ...]) -> list[str]:
    """What a line of the ledger stands for, so that a reader can add it up."""
    shares = release_shares(releases, line)
    rows = [
        f"| {m.mechanism} | {_number(m.max_grad_norm)} | {_number(m.noise_multiplier)} | {share:.4%} |"
        for m, share in zip(releases, shares, strict=True)
    ]
    return [
        "",
        f"## What the line `{line.mechanism}` stands for",
        "",
        "| Gaussian release | sensitivity | noise multiplier | share of the line |",
        "|---|---|---|---|",
        *rows,
        "",
        f"A share is the squared ratio of the line's noise multiplier, {_number(line.noise_multiplier)}, and the "
        f"release's. They add up to {sum(shares):.4%}. Gaussian releases whose shares can add up to no more than 100 "
        "%, whatever any of them gives (this program sees to it), are as private together as the one Gaussian release "
        "that the line says, also where a release and its share are chosen by what came before (arXiv 1905.02383, "
        "corollary 3.3; arXiv 2210.17520).",
    ]


def _claim(facts: CardFacts) -> list[str]:
    if facts.seeded:
        return [
            "**Not private: seeded noise.** The noise was made from a seed, so whoever knows the seed can subtract it. "
            "The figures below are what the same run would have guaranteed with secret noise."
        ]
    if not facts.private:
        return ["**Not private: epsilon is inf.** No noise was added and nothing was clipped: a non-private baseline."]
    return [
        f"The trained model, and every synthetic record drawn from it, is **({_number(facts.planned_epsilon)}, "
        f"{_number(facts.delta)})-differentially private** for adding or removing one unit. A unit is {facts.unit}."
    ]


def privacy_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    spent = facts.spent
    lines = ["# Privacy card", "", *_claim(facts), ""]
    for warning in facts.warnings:
        lines += [f"**Warning:** {warning}", ""]
    lines += ["## Budget", ""]
    lines += [
        "| | epsilon | delta |",
        "|---|---|---|",
        f"| planned: the claim | {_number(facts.planned_epsilon)} | {_number(facts.delta)} |",
        f"| spent, by the ledger ({spent.accountant}, the smaller of the two below) | {_number(spent.epsilon)} "
        f"| {_number(spent.delta)} |",
        f"| spent by Renyi DP | {_number(spent.epsilon_rdp)} | {_number(spent.delta)} |",
        f"| spent by privacy loss distributions (grid {spent.pld_interval:g}) | {_number(spent.epsilon_pld)} "
        f"| {_number(spent.delta)} |",
        "",
        "Both accountants give upper bounds (dp-accounting); `dpcgan account` on the run folder computes them again.",
    ]
    if any(isinstance(m, Selection) for m in facts.mechanisms):
        lines += ["", "Of a private selection Renyi DP has a bound; privacy loss distributions have none (inf)."]
    if facts.chosen:
        lines += ["", "## How the settings were chosen", "", *(f"- {sentence}" for sentence in facts.chosen)]
    if facts.stopped:
        lines += ["", f"Training ended before all planned steps: {facts.stopped}"]
    lines += ["", "## Mechanisms that touched the data", "", *_mechanism_table(facts.mechanisms, spent)]
    if facts.composed is not None and facts.composed.noise_multiplier > 0:
        lines += _composed_table(facts.composed, facts.releases)
    for title, entries in (
        ("Public facts, given in the schema or on the command line", facts.public),
        ("Facts estimated from the data, and paid for above", facts.paid),
        ("Settings" if facts.chosen else "Settings, chosen without the data", facts.settings),
        ("Assumptions", list(facts.assumptions)),
    ):
        lines += ["", f"## {title}", "", *(f"- {entry}" for entry in entries or ["none"])]
    lines += [
        "",
        "## What this card does not cover",
        "",
        "- Evaluation on real held-out records is not differentially private; its files say so.",
        "- Anything else that was published about the same people adds to the privacy loss.",
        "",
    ]
    return "\n".join(lines)
