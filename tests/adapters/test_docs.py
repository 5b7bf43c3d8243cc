"""Every program in the pages of docs/ runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PROGRAMS = [
    pytest.param(program, id=f"{page.name}:{number}", marks=[NO_GPU] if "cuda" in program else [])
    for page in PAGES
    for number, program in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S), 1)
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_docs_runs(program, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pages_for_programmers_have_programs():
    pages = {str(program.id).split(":")[0] for program in PROGRAMS}
    assert pages == {"engine.md", "evaluation.md", "from_opacus.md", "torch_func.md"}
