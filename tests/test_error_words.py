"""Below the command line no text names an option: callers from Python see it, too. The rule stands in `errors`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dpcgan_fast"
MODULES = sorted(path for path in ROOT.rglob("*.py") if "cli" not in path.relative_to(ROOT).parts)
OPTION = re.compile(r"(?<![\w-])(--[a-z{]|-n\b)")  # { where a value is put in
# Whoever reads it can give a whole command, and find the option beside the name that Python has for it.
SERVES_BOTH = re.compile(r"`(dpcgan|pip) [^`]*`|\b\w+[=_]\w+ \(--[a-z-]+\)")
# Texts that only users of one command see.
EXCEPTIONS = {
    "bench/compare.py": "compares files that `dpcgan bench` wrote",
    "bench/nets.py": "picks nets by what was written behind --nets",
    "bench/paper/cells.py": "the grid that `dpcgan bench --suite paper` asks for, and its output file",
    "bench/paper/tables.py": "picks a table by what was written behind --data, also of the scripts in bench",
    "bench/paper/systems.py": "describes systems in the suite's pages by the options of `dpcgan train`",
    "bench/paper/summary.py": "the suite's pages: which option sets the number of steps",
}


class Texts(ast.NodeVisitor):
    """All strings of a module but docstrings, with {} for values that are put in."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Expr(self, node: ast.Expr) -> None:
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        self.found.append("".join(map(str, texts)))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)


def options_named(source: str) -> list[str]:
    """Texts of a module that name an option."""
    texts = Texts()
    texts.visit(ast.parse(source))
    return [text for text in texts.found if OPTION.search(SERVES_BOTH.sub("", text))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_name_no_option_but_where_only_a_command_shows_them(path):
    found = options_named(path.read_text())
    if str(path.relative_to(ROOT)) in EXCEPTIONS:
        assert found, f"{path} is no exception any more"
    else:
        assert not found


@pytest.mark.parametrize(
    "text",
    ['"--real"', 'f"--epsilon {epsilon:g}"', 'f"--{name} 3"', '"Use --preset auto."', 'f"-n {rows}"',
     '"Go on (--resume)."', 'f"{f(\'--real\')}"', '"Give `--out`."'],
)  # fmt: skip
def test_an_option_is_found(text):
    assert len(options_named(f"error({text})")) == 1


@pytest.mark.parametrize(
    "text",
    ['"Give resume=True (--resume)."', '"Use search_on_public (--public-data)."', '"Use `dpcgan train ... --resume`."',
     'f"epsilon {epsilon:g}"', '"a -- b, non-negative, ---"'],
)  # fmt: skip
def test_what_serves_both_callers_is_left(text):
    assert options_named(f'def f():\n    """Of --real."""\n    error({text})') == []
