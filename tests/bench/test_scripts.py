"""Scripts of bench/ that need no package but those of the tests start, and say what they take."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize(
    "script", ["compare.py", "every_dataset.py", "limits.py", "make_support2.py", "mst.py", "render.py"]
)
def test_a_script_says_what_it_takes(script):
    done = subprocess.run([sys.executable, str(BENCH / script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")
