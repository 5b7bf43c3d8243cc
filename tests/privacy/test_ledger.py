"""The ledger: what it records, what it refuses, and what a crash leaves of it."""

import json
import math
import os
import subprocess
import sys

import pytest

from dpcgan_fast.errors import MachineError, PrivacyError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism
from dpcgan_fast.privacy.ledger import charged, read_ledger, seeded

CRITIC = Mechanism("critic", "poisson_gaussian", 0.02, 1.25, 100, 1.0, unit="patient_id")
RELEASE = Mechanism("label histogram", "gaussian", 1.0, 40.0, 1, 1.0, delta=1e-7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def written(path):
    """A release, a full block, a block that was stopped after 40 steps, and one that a crash left open."""
    with Ledger(path, create=True) as ledger:
        ledger.close(ledger.reserve(RELEASE, "aa"), 1)
        ledger.close(ledger.reserve(CRITIC, "aa"), 100)
        ledger.close(ledger.reserve(CRITIC, "aa"), 40)
        ledger.reserve(CRITIC.with_steps(60), "bb")
    return path


def test_lines_have_the_fields_of_the_contract_and_form_a_chain(written):
    prev = "0" * 64
    for seq, text in enumerate(written.read_text().splitlines()):
        values = json.loads(text)
        assert {
            "seq", "prev", "hash", "mechanism", "event", "sample_rate", "noise_multiplier", "steps", "max_grad_norm",
            "delta", "unit", "key_id",
        } <= set(values)  # fmt: skip
        assert values["seq"] == seq
        assert values["prev"] == prev
        assert values["event"] in ("gaussian", "poisson_gaussian", "close")
        prev = values["hash"]


def test_hashes_are_sha256_of_the_canonical_json_of_the_rest(written):
    import hashlib

    for text in written.read_text().splitlines():
        values = json.loads(text)
        stated = values.pop("hash")
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == stated


def test_what_counts_is_what_was_done_and_an_open_block_in_full(written):
    lines, torn = read_ledger(written)
    assert not torn
    assert [(m.mechanism, m.steps) for m in charged(lines)] == [
        ("label histogram", 1), ("critic", 100), ("critic", 40), ("critic", 60)
    ]  # fmt: skip
    with Ledger(written) as ledger:
        assert ledger.charged_steps("critic") == 200
        assert ledger.open_reservation("critic").mechanism.steps == 60
        assert ledger.open_reservation("label histogram") is None


def test_a_block_at_work_counts_with_the_steps_taken_and_a_closed_one_with_those_it_states(written):
    lines, _ = read_ledger(written)
    taken = {lines[-1].seq: 7, lines[2].seq: 1}
    assert [m.steps for m in charged(lines, taken)] == [1, 100, 40, 7]


def test_noise_from_a_seed_is_seen_in_the_ledger(path, written):  # noqa: ARG001
    lines, _ = read_ledger(path)
    assert not seeded(lines)
    with Ledger(path) as ledger:
        ledger.reserve(CRITIC, NoiseKey(3).key_id)
    assert seeded(read_ledger(path)[0])


def test_infinity_is_a_string(path):
    with Ledger(path, create=True) as ledger:
        ledger.reserve(Mechanism("critic", "poisson_gaussian", 0.02, 0.0, 5, math.inf), "aa")
    assert json.loads(path.read_text())["max_grad_norm"] == "inf"
    assert charged(read_ledger(path)[0])[0].max_grad_norm == math.inf


def _edits(lines):
    """Every way of tampering that the chain must show, by name."""
    change = lambda i, old, new: [line.replace(old, new) if k == i else line for k, line in enumerate(lines)]  # noqa: E731
    last = json.loads(lines[-1])
    forged = json.dumps({**last, "seq": len(lines), "prev": last["hash"]}, sort_keys=True, separators=(",", ":"))
    return {
        "noise": change(2, '"noise_multiplier":1.25', '"noise_multiplier":9.25'),
        "rate": change(2, '"sample_rate":0.02', '"sample_rate":0.01'),
        "steps": change(3, '"steps":100', '"steps":10'),
        "dropped": lines[:2] + lines[3:],
        "first dropped": lines[1:],
        "swapped": [lines[1], lines[0], *lines[2:]],
        "repeated": [*lines, lines[-1]],
        "white space": change(2, '":', '": '),
        "forged": [*lines, forged],
        "not a number": change(2, "1.25", "NaN"),
        "too large": change(2, "1.25", "1e999"),
        "key twice": change(2, '"delta":0.0,', '"delta":0.0,"delta":0.0,'),
        "nul": change(1, '"unit"', '"un\x00it"'),
        "no json": [*lines[:1], "hello", *lines[2:]],
        "empty line": [*lines[:1], "", *lines[1:]],
        "a list": [*lines[:1], "[]", *lines[2:]],
    }


@pytest.mark.parametrize("edit", list(_edits(['{"hash":""}'] * 7)))
def test_tampering_is_refused(written, edit):
    lines = written.read_text().splitlines()
    edited = _edits(lines)[edit]
    assert edited != lines
    written.write_text("".join(f"{line}\n" for line in edited))
    for attempt in (read_ledger, Ledger):
        with pytest.raises(PrivacyError, match="ledger is broken"):
            attempt(written)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}\n", b"\xff\xfe\n", b"{}\r\n", b"[" * 100_000 + b"\n"])
def test_files_that_are_no_ledger_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(PrivacyError):
        read_ledger(path)


def test_every_flipped_bit_is_noticed(written):
    content = written.read_bytes()
    for offset in range(0, len(content) - 1, 37):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (offset % 8)
        written.write_bytes(bytes(flipped))
        with pytest.raises(PrivacyError):
            read_ledger(written)


def test_a_missing_ledger_is_refused(path):
    for attempt in (read_ledger, Ledger):
        with pytest.raises(PrivacyError, match="ledger is missing"):
            attempt(path)
    path.write_text("")
    with pytest.raises(PrivacyError, match="There is a ledger already"):
        Ledger(path, create=True)


@pytest.mark.parametrize("kept", [1, 30, 200])
def test_a_line_that_a_crash_tore_is_dropped_and_reported(written, kept):
    whole = written.read_text()
    written.write_text(whole + whole.splitlines()[-1][:kept])
    with Ledger(written) as ledger:
        assert ledger.torn
        assert len(ledger.lines) == 7
        ledger.reserve(CRITIC, "cc")
    assert len(read_ledger(written)[0]) == 8


def test_a_closing_line_must_fit_its_reservation(path):
    with Ledger(path, create=True) as ledger:
        seq = ledger.reserve(CRITIC, "aa")
        with pytest.raises(PrivacyError, match="does not fit what was reserved"):
            ledger.close(seq, 101)
        ledger.close(seq, 100)
        with pytest.raises(PrivacyError, match="does not fit what was reserved"):
            ledger.close(seq, 100)


def test_one_writer_at_a_time(written):
    code = f"from dpcgan_fast.privacy import Ledger\nLedger({str(written)!r})"
    with Ledger(written):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Another process is writing the ledger" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_eight_processes_appending_at_once_leave_one_clean_chain(path):
    Ledger(path, create=True).__exit__()
    code = (
        "import sys\nfrom dpcgan_fast.errors import PrivacyError\nfrom dpcgan_fast.privacy import Ledger, Mechanism\n"
        f"m = Mechanism('critic', 'poisson_gaussian', 0.02, 1.25, 1, 1.0)\n"
        "try:\n"
        f"    with Ledger({str(path)!r}) as ledger:\n"
        "        for _ in range(50):\n            ledger.close(ledger.reserve(m, 'aa'), 1)\n"
        "except PrivacyError:\n    sys.exit(3)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(8)]
    codes = [process.wait(timeout=120) for process in running]
    winners = codes.count(0)
    assert winners >= 1
    assert set(codes) <= {0, 3}
    assert len(read_ledger(path)[0]) == 100 * winners


def test_a_line_is_on_disk_before_reserve_returns(path, monkeypatch):
    events = []
    real_fsync, real_write = os.fsync, os.write
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "write", lambda fd, data: (events.append("write"), real_write(fd, data))[1])
    with Ledger(path, create=True) as ledger:
        events.clear()
        ledger.reserve(CRITIC, "aa")
    assert events == ["write", "fsync"]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_disk_that_fails_leaves_the_ledger_as_it_was(written, monkeypatch, failing):
    before = written.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with Ledger(written) as ledger:
        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(MachineError, match="The disk is full"):
            ledger.reserve(CRITIC, "aa")
        monkeypatch.undo()
        assert len(ledger.lines) == 7
    assert written.read_bytes() == before


def test_the_ledger_is_for_its_owner_alone(written):
    assert written.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_is_not_followed(tmp_path, written):
    link = tmp_path / "link.jsonl"
    link.symlink_to(written)
    with pytest.raises(MachineError):
        Ledger(link)
