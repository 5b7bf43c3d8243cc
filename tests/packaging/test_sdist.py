"""The source distribution holds all that a build needs, and nothing else. `check_wheel.sh` builds and installs it."""

import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import dpcgan_fast

ROOT = Path(__file__).parents[2]
NEEDED = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    "docs/*.md",
    *("csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu", "csrc/**/*.cuh"),
    *("dpcgan_fast/**/*.py", "dpcgan_fast/py.typed", "dpcgan_fast/data/embedded/*", "dpcgan_fast/report/*.j2"),
)
BUILD = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def test_it_holds_what_a_build_needs_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames() if not files.getmember(name).isdir()}
    made = {name for name in held if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    needed = {str(path.relative_to(ROOT)) for pattern in NEEDED for path in ROOT.glob(pattern)}
    assert held - made == needed
    assert all((ROOT / pattern).exists() for pattern in NEEDED if "*" not in pattern)


def test_the_version_is_stated_alike_in_both_places():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == dpcgan_fast.__version__
