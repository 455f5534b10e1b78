"""The journal: what was answered is found again, whenever the process dies, and damage never becomes history."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp_predictor.journal import Entry, Journal, Kind

if TYPE_CHECKING:
    from pathlib import Path

entries = st.lists(
    st.builds(Entry, st.sampled_from(Kind), st.none() | st.integers(0, 2**62), st.binary(max_size=60)), max_size=6
)


def written(state: Path, some: list[Entry]) -> Path:
    """The part that `some` were written to."""
    for part in state.parent.glob("*.journal-*"):
        part.unlink()
    journal = Journal(state)
    for entry in some:
        journal.write(entry)
    journal.turn()
    return state.with_name(state.name + ".journal-1")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries)
def test_what_was_written_is_read(tmp_path: Path, some: list[Entry]) -> None:
    """Every request with its clock, in order, by the next process."""
    written(tmp_path / "state.npz", some)
    assert list(Journal(tmp_path / "state.npz").entries()) == some


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries.filter(bool), st.integers(0, 10_000), st.integers(1, 255))
def test_a_torn_or_damaged_record_ends_its_part(tmp_path: Path, some: list[Entry], place: int, flip: int) -> None:
    """Cut anywhere, or one byte changed anywhere: what is read is a true beginning."""
    part = written(tmp_path / "state.npz", some)
    data = bytearray(part.read_bytes())
    place %= len(data)
    part.write_bytes(data[:place])
    read = list(Journal(tmp_path / "state.npz").entries())
    assert read == some[: len(read)]
    assert len(read) < len(some)
    data[place] ^= flip
    part.write_bytes(data)
    read = list(Journal(tmp_path / "state.npz").entries())
    assert read == some[: len(read)]
    assert len(read) < len(some)


def test_parts_go_when_the_state_holds_them(tmp_path: Path) -> None:
    """A failed save leaves both parts; the next one's success takes both, and not what came since."""
    one, two, three = (Entry(Kind.OBSERVE, number, b"request") for number in range(3))
    journal = Journal(tmp_path / "state.npz")
    journal.write(one)
    journal.turn()
    journal.write(two)
    last = journal.turn()
    journal.write(three)
    assert list(Journal(tmp_path / "state.npz").entries()) == [one, two, three]
    journal.forget(last)
    later = Journal(tmp_path / "state.npz")
    assert list(later.entries()) == [three]
    later.write(one)  # after a restart: behind what is there
    later.turn()
    journal.turn()
    assert list(Journal(tmp_path / "state.npz").entries()) == [three, one]


def test_a_short_write_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that fills up: nothing is appended behind half a record, where nobody would find it."""
    journal, entry = Journal(tmp_path / "state.npz"), Entry(Kind.OBSERVE, 1, b"request")

    class Filling(io.FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(data[:5])

    journal.write(entry)
    assert journal._file is not None
    journal._file.close()
    journal._file = Filling(tmp_path / "state.npz.journal-1", "ab")  # raw, as the real one
    with structlog.testing.capture_logs() as logs:
        journal.write(entry)
        journal.write(entry)
    assert len(logs) == 1
    journal.turn()
    journal.write(entry)
    journal.turn()
    assert list(Journal(tmp_path / "state.npz").entries()) == [entry, entry]


def test_a_journal_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """Whoever observes is answered all the same; after the next save it is tried again."""
    journal = Journal(tmp_path / "other.npz")
    (tmp_path / "other.npz.journal-1").mkdir()
    entry = Entry(Kind.DELETE, None, b"")
    with structlog.testing.capture_logs() as logs:
        journal.write(entry)
        journal.write(entry)
    assert [line["event"] for line in logs] == ["journal not written"]
    journal.turn()
    journal.write(entry)
    journal.turn()
    assert (tmp_path / "other.npz.journal-2").exists()
    with pytest.raises(InputError, match=r"journal-1: the journal cannot be read \(Is a directory\)"):
        list(journal.entries())
