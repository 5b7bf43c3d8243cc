"""What happens when the native extension does not fit the torch that is there."""

import subprocess
import sys

import pytest
import torch

from dpcgan_fast.ops import _backend

FAKED = "import torch; torch.__version__ = '2.99.0'; from dpcgan_fast import ops; print(ops.backend())"


def loaded_when_built_for(version, monkeypatch, tmp_path):
    record = tmp_path / "built_for.txt"
    record.write_text(version)
    monkeypatch.setattr(_backend, "_BUILT_FOR", record)
    return _backend._load()


def test_an_extension_for_another_minor_version_of_torch_is_not_loaded(monkeypatch, tmp_path):
    with pytest.raises(ImportError, match=r"built for torch 1\.13\.1 and fits that minor version alone; torch is"):
        loaded_when_built_for("1.13.1", monkeypatch, tmp_path)


def test_a_patch_version_makes_no_difference(monkeypatch, tmp_path):
    major, minor, *_ = torch.__version__.split(".")
    assert loaded_when_built_for(f"{major}.{minor}.99+cu999", monkeypatch, tmp_path).build_info()


def test_the_build_noted_which_torch_it_is_for():
    assert _backend._BUILT_FOR.read_text() == _backend.native_module().build_info()["torch"]


@pytest.mark.parametrize(("asked", "printed"), [("native", ""), ("reference", "reference\n")])
def test_the_error_says_what_to_do_and_the_references_still_run(asked, printed, monkeypatch):
    monkeypatch.setenv("DPCGAN_BACKEND", asked)
    done = subprocess.run([sys.executable, "-c", FAKED], capture_output=True, text=True, check=False)
    assert done.stdout == printed
    if asked == "native":
        assert "torch is 2.99.0 now. Build it from its sources against this torch, with `pip install" in done.stderr
