"""The package's names: they load when they are first used, and are all that it lists."""

import subprocess
import sys

import pytest

import dpcgan_fast


def test_what_is_listed_is_what_loads():
    assert dpcgan_fast.__all__ == sorted([*dpcgan_fast._NAMES, *dpcgan_fast._MODULES])
    assert set(dpcgan_fast.__all__) <= set(dir(dpcgan_fast))


@pytest.mark.parametrize("name", dpcgan_fast.__all__)
def test_a_name_loads(name):
    assert getattr(dpcgan_fast, name).__name__.rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dpcgan_fast' has no attribute 'engines'"):
        _ = dpcgan_fast.engines


def test_the_package_alone_loads_not_even_torch():
    code = "import sys, dpcgan_fast; print('torch' in sys.modules); from dpcgan_fast import DPCGAN; print(DPCGAN)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["False", "<class 'dpcgan_fast.synthesis.api.DPCGAN'>"]
