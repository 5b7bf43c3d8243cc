"""The ledger: an append-only, hash-chained file of every mechanism that touched the data.

A line that reserves a block of steps is on disk before the noise of those steps is drawn; a closing line then states
how many were done. A block without a closing line, as a crash leaves it, counts in full. To recompute epsilon from a
ledger, take each line whose event is `gaussian` or `poisson_gaussian`, with the steps of the line that closes it if
there is one, and compose at what their deltas leave of delta; then add -log(1 - delta) for each of these.

Where the first line's event is `repeat_and_select`, the run was chosen by a private selection among others. That line
alone is what counts: it states the distribution of the number of runs, and what each of them takes from the data at
most. The lines after it, whose events begin with `selected_`, say what the chosen run took, and cost nothing beyond it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dpcgan_fast.errors import PrivacyError
from dpcgan_fast.files import PRIVATE_FILE, machine_error, sync_folder
from dpcgan_fast.ops import SEEDED_KEY_ID
from dpcgan_fast.privacy.mechanism import Mechanism
from dpcgan_fast.privacy.selection import SELECTION_EVENT, Selection

FIRST_PREV = "0" * 64
CLOSE_EVENT = "close"
_REFUSED = (
    "The privacy spent can no longer be shown, so nothing may be trained on; restore the file, or start a new run."
)


@dataclass(frozen=True)
class LedgerLine:
    """One line; `closes` is the seq of the line that a closing line belongs to, else None."""

    seq: int
    mechanism: Mechanism | Selection
    key_id: str
    closes: int | None
    hash: str


def canonical_json(values: dict[str, Any]) -> str:
    """JSON with sorted keys and no spaces; infinity is the string "inf". One value has one such text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _hash_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _parse_line(text: str, seq: int, prev: str, where: str) -> LedgerLine:
    """Checks one line against the chain. Raises PrivacyError that says which line is wrong, and how."""

    def broken(what: str) -> PrivacyError:
        return PrivacyError(f"The ledger is broken: {what}", f"{where}, line {seq + 1}", _REFUSED)

    try:
        values = json.loads(text)
        if not isinstance(values, dict) or canonical_json(values) != text:
            raise broken("the line is not in canonical form, so it was edited")
        stated = values.pop("hash")
        if values["seq"] != seq or values["prev"] != prev:
            raise broken("a line is missing, repeated or out of order")
        if _hash_of(values) != stated:
            raise broken("its hash does not match its content, so it was edited")
        closes = values.get("closes")
        event = values["reserved_event"] if closes is not None else values["event"]
        known = {**values, "event": event}
        mechanism = Selection.from_dict(known) if event == SELECTION_EVENT else Mechanism.from_dict(known)
        return LedgerLine(seq, mechanism, values["key_id"], closes, stated)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise broken(f"it cannot be read ({type(error).__name__})") from None


def read_ledger(path: str | Path) -> tuple[list[LedgerLine], bool]:
    """All lines of a ledger, checked, and whether a torn line was left out at the end.

    A line without its line break is what a crash during an append leaves; its noise was never drawn.
    Raises PrivacyError if the ledger is missing or any complete line fails its check.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("ascii")
    except FileNotFoundError:
        raise PrivacyError("The ledger is missing", str(path), _REFUSED) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PrivacyError("The ledger cannot be read", f"{path}: {type(error).__name__}", _REFUSED) from None
    *complete, torn = text.split("\n")
    lines: list[LedgerLine] = []
    prev = FIRST_PREV
    for seq, line_text in enumerate(complete):
        line = _parse_line(line_text, seq, prev, str(path))
        if line.closes is not None:
            _check_closing(lines, line, str(path))
        _check_selection(lines, line, str(path))
        lines.append(line)
        prev = line.hash
    return lines, torn != ""


def _check_closing(lines: list[LedgerLine], closing: LedgerLine, where: str) -> None:
    reserved = next((line for line in lines if line.seq == closing.closes and line.closes is None), None)
    again = any(line.closes == closing.closes for line in lines)
    if reserved is None or again or closing.mechanism.steps > reserved.mechanism.steps:
        raise PrivacyError(
            "The ledger is broken: a closing line does not fit what was reserved",
            f"{where}, line {closing.seq + 1}",
            _REFUSED,
        )


def _check_selection(lines: list[LedgerLine], line: LedgerLine, where: str) -> None:
    """A selection is the first line; inside it is what one of its runs may take, and outside of it nothing of the kind.

    Raises PrivacyError otherwise: what such a ledger spent could not be told.
    """
    if isinstance(line.mechanism, Selection):
        fits = not lines and line.closes is None
    else:
        selection = selection_of(lines)
        fits = line.mechanism.selected == (selection is not None)
        fits = fits and (selection is None or selection.holds(taken_by_run([*lines, line])))
    if not fits:
        what = "The ledger is broken: a line does not fit the private selection that it is part of"
        raise PrivacyError(what, f"{where}, line {line.seq + 1}", _REFUSED)


def selection_of(lines: list[LedgerLine]) -> Selection | None:
    """The private selection that chose the run, None if there was none."""
    first = lines[0].mechanism if lines else None
    return first if isinstance(first, Selection) else None


def seeded(lines: list[LedgerLine]) -> bool:
    """Whether any noise came from a seed, so that whoever knows the seed can subtract it."""
    return any(line.key_id == SEEDED_KEY_ID for line in lines)


def taken_by_run(lines: list[LedgerLine], taken: Mapping[int, int] | None = None) -> list[Mechanism]:
    """What the run itself reserved, with the steps done where a closing line states them.

    taken: by seq, steps taken so far of blocks that are still at work; other open blocks count in full
    """
    done = {line.closes: line.mechanism.steps for line in lines if line.closes is not None}
    done = {**(taken or {}), **done}
    return [
        line.mechanism.with_steps(done.get(line.seq, line.mechanism.steps))
        for line in lines
        if line.closes is None and isinstance(line.mechanism, Mechanism)
    ]


def charged(lines: list[LedgerLine], taken: Mapping[int, int] | None = None) -> list[Mechanism | Selection]:
    """What counts: the private selection that chose the run, or else what the run reserved; see `taken_by_run`."""
    selection = selection_of(lines)
    return [*taken_by_run(lines, taken)] if selection is None else [selection]


class Reserves(Protocol):
    """What a release tells before and after it is made: the ledger of a run, or of an audit nothing."""

    def reserve(self, mechanism: Mechanism, key_id: str) -> int:
        """A block of steps is about to be taken. Its seq."""
        ...

    def close(self, seq: int, steps_done: int) -> None:
        """So many of a reserved block's steps were taken."""
        ...


class Ledger:
    """The open ledger of a run; one writer at a time.

    Use as a context manager. Raises PrivacyError if another process holds it or if it fails its checks.
    """

    def __init__(self, path: str | Path, create: bool = False):
        self.path: Path = Path(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        try:
            self._descriptor = os.open(self.path, flags, PRIVATE_FILE)
        except FileNotFoundError:
            raise PrivacyError("The ledger is missing", str(self.path), _REFUSED) from None
        except FileExistsError:
            raise PrivacyError(
                "There is a ledger already", str(self.path), "Choose a new folder for the run."
            ) from None
        except OSError as error:
            raise machine_error(error, self.path) from error
        try:
            self._lock()
            if create:
                sync_folder(self.path.parent)
            self.lines: list[LedgerLine]
            self.torn: bool
            self.lines, self.torn = read_ledger(self.path)
            if self.torn:
                self._drop_torn_line()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrivacyError(
                "Another process is writing the ledger", str(self.path), "Wait until it has ended, or stop it."
            ) from None

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)
        os.fsync(self._descriptor)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def head(self) -> str:
        """Hash of the last line; whoever keeps it can later tell whether the ledger was rolled back."""
        return self.lines[-1].hash if self.lines else FIRST_PREV

    def open_reservation(self, mechanism: str) -> LedgerLine | None:
        """The last reservation of a mechanism if it was never closed, which is what a crash leaves."""
        closed = {line.closes for line in self.lines}
        own = [line for line in self.lines if line.mechanism.mechanism == mechanism and line.closes is None]
        return own[-1] if own and own[-1].seq not in closed else None

    def charged_steps(self, mechanism: str) -> int:
        """Steps of a mechanism that the run has reserved so far, those that were never taken left out."""
        return sum(m.steps for m in taken_by_run(self.lines) if m.mechanism == mechanism)

    def charged_with(self, block: Mechanism) -> list[Mechanism | Selection]:
        """What will count once a block is reserved; a private selection counts whole from the start."""
        return charged(self.lines) if selection_of(self.lines) is not None else [*charged(self.lines), block]

    def reserve(self, mechanism: Mechanism | Selection, key_id: str) -> int:
        """Writes, durably, that a block of steps is about to be taken; only then may its noise be drawn. Its seq.

        A private selection is reserved first of all, and stays open: it counts whole.
        """
        return self._append(mechanism, mechanism.event, key_id, {})

    def close(self, seq: int, steps_done: int) -> None:
        """Writes, durably, how many of a reserved block's steps were taken."""
        line = self.lines[seq]
        if isinstance(line.mechanism, Selection):
            raise ValueError("Expected a block of steps: a private selection is never closed.")
        extra = {"closes": seq, "reserved_event": line.mechanism.event}
        self._append(line.mechanism.with_steps(steps_done), CLOSE_EVENT, line.key_id, extra)

    def _append(self, mechanism: Mechanism | Selection, event: str, key_id: str, extra: dict[str, Any]) -> int:
        values: dict[str, Any] = {
            "seq": len(self.lines),
            "prev": self.head,
            **mechanism.to_dict(),
            "event": event,
            "key_id": key_id,
            **extra,
        }
        text = canonical_json({**values, "hash": _hash_of(values)})
        line = _parse_line(text, len(self.lines), self.head, str(self.path))
        if line.closes is not None:
            _check_closing(self.lines, line, str(self.path))
        _check_selection(self.lines, line, str(self.path))
        size = os.fstat(self._descriptor).st_size
        try:
            _write_all(self._descriptor, f"{text}\n".encode())
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # a half line would be dropped on the next opening anyway
                os.ftruncate(self._descriptor, size)
            raise machine_error(error, self.path) from error
        self.lines.append(line)
        return line.seq


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
