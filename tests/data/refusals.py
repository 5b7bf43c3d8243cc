"""Files to read, and what is said where they are refused."""

import pytest

from dpcgan_fast.data.reading import read_table
from dpcgan_fast.errors import InputError

SENTINEL = "Zq8sentinel"


def file(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(source, wanted=("a", "b")):
    """The text of the error that reading ends in; it must be one line and must not quote the data."""
    with pytest.raises(InputError) as caught:
        read_table(source, wanted)
    text = str(caught.value)
    assert SENTINEL not in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text
