"""The ledger of a run that a private selection chose: what counts, and what is refused."""

import hashlib
import json

import pytest

from dpcgan_fast.errors import PrivacyError
from dpcgan_fast.privacy import Ledger, Mechanism
from dpcgan_fast.privacy.ledger import canonical_json, charged, read_ledger, taken_by_run
from dpcgan_fast.privacy.selection import RunCount, Selection

PLAIN = Mechanism("critic", "poisson_gaussian", 0.02, 1.25, 100, 1.0)
CRITIC = PLAIN.inside_selection()
SCORE = Mechanism("score", "gaussian", 1.0, 9.0, 1, 1.0).inside_selection()
OTHER = Mechanism("critic", "poisson_gaussian", 0.02, 2.5, 400, 1.0).inside_selection()
WHOLE = Selection(RunCount("logarithmic", 8.0), ((CRITIC, SCORE), (OTHER, SCORE)), 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def written(path):
    """The selection, two blocks of the chosen run, and its score."""
    with Ledger(path, create=True) as ledger:
        ledger.reserve(WHOLE, "aa")
        ledger.close(ledger.reserve(CRITIC.with_steps(60), "aa"), 60)
        ledger.close(ledger.reserve(CRITIC.with_steps(40), "aa"), 40)
        ledger.close(ledger.reserve(SCORE, "bb"), 1)
    return path


def rechained(values):
    """The lines with a chain of hashes that fits, as somebody would forge it."""
    lines, prev = [], "0" * 64
    for seq, line in enumerate(values):
        rest = {**{k: v for k, v in line.items() if k != "hash"}, "seq": seq, "prev": prev}
        prev = hashlib.sha256(canonical_json(rest).encode()).hexdigest()
        lines.append(canonical_json({**rest, "hash": prev}))
    return "".join(f"{line}\n" for line in lines)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_selection_is_all_that_counts(written):
    lines, torn = read_ledger(written)
    assert not torn
    assert charged(lines) == [WHOLE]
    assert [(m.mechanism, m.steps) for m in taken_by_run(lines)] == [("critic", 60), ("critic", 40), ("score", 1)]
    with Ledger(written) as ledger:
        assert ledger.charged_steps("critic") == 100
        assert ledger.charged_with(CRITIC) == [WHOLE]


def test_no_line_has_an_event_that_an_accountant_of_single_runs_would_count(written):
    assert [line["event"] for line in lines_of(written)] == [
        "repeat_and_select", "selected_poisson_gaussian", "close", "selected_poisson_gaussian", "close",
        "selected_gaussian", "close",
    ]  # fmt: skip


def test_the_selection_counts_whole_from_its_first_line_on(path):
    with Ledger(path, create=True) as ledger:
        ledger.reserve(WHOLE, "aa")
        with pytest.raises(ValueError, match="never closed"):
            ledger.close(0, 1)
    assert charged(read_ledger(path)[0]) == [WHOLE]


@pytest.mark.parametrize(
    "block",
    [
        CRITIC.with_steps(101),
        Mechanism("critic", "poisson_gaussian", 0.02, 1.0, 100, 1.0).inside_selection(),
        Mechanism("label histogram", "gaussian", 1.0, 9.0, 1, 1.0).inside_selection(),
        PLAIN,
        WHOLE,
    ],
    ids=["more steps", "less noise", "another mechanism", "outside of the selection", "a second selection"],
)
def test_nothing_can_be_reserved_that_the_selection_does_not_hold(path, block):
    with Ledger(path, create=True) as ledger:
        ledger.reserve(WHOLE, "aa")
        before = path.read_bytes()
        with pytest.raises(PrivacyError, match="does not fit the private selection"):
            ledger.reserve(block, "aa")
    assert path.read_bytes() == before


def test_a_run_cannot_take_from_two_candidates(path):
    with Ledger(path, create=True) as ledger:
        ledger.reserve(WHOLE, "aa")
        ledger.reserve(CRITIC.with_steps(50), "aa")
        with pytest.raises(PrivacyError, match="does not fit the private selection"):
            ledger.reserve(OTHER.with_steps(50), "aa")


@pytest.mark.parametrize("block", [CRITIC, WHOLE])
def test_neither_a_selection_nor_what_is_inside_one_can_come_later(path, block):
    with Ledger(path, create=True) as ledger:
        ledger.reserve(PLAIN, "aa")
        with pytest.raises(PrivacyError, match="does not fit the private selection"):
            ledger.reserve(block, "aa")


def test_a_ledger_without_its_selection_is_refused_also_if_the_chain_was_forged(written):
    lines = lines_of(written)
    shifted = [{**line, "closes": line["closes"] - 1} if "closes" in line else line for line in lines[1:]]
    written.write_text(rechained(shifted))
    with pytest.raises(PrivacyError, match="does not fit the private selection"):
        read_ledger(written)
    unmarked = json.loads(json.dumps(lines[1:]).replace("selected_", ""))
    written.write_text(rechained([lines[0], *unmarked]))
    with pytest.raises(PrivacyError, match="does not fit the private selection"):
        read_ledger(written)


@pytest.mark.parametrize(
    "change",
    [
        {"runs_mean": 2.0},
        {"runs_distribution": "geometric"},
        {"candidates": 1},
        {"runs": []},
        {"noise_multiplier": 9.0},
    ],
)
def test_an_edited_selection_is_noticed(written, change):
    lines = lines_of(written)
    lines[0] |= change
    written.write_text("".join(f"{canonical_json(line)}\n" for line in lines))
    with pytest.raises(PrivacyError, match="ledger is broken"):
        read_ledger(written)
