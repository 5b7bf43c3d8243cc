"""Imports go one way, downwards in the layer list of the design; a new module must find its layer."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dpcgan_fast"
# Lowest first. A package may import those below it, and itself.
LAYERS = [
    {"errors"},
    {"files"},
    {"ops"},
    {"data"},
    {"privacy"},
    {"baselines"},
    {"engine"},
    {"adapters"},
    {"models"},
    {"train"},
    {"synthesis"},
    {"auditing"},
    {"evaluate"},
    {"tuning"},
    {"report", "bench"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in RANK)


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """Layers that a module imports, wherever in the module the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("dpcgan_fast.")}
    return found - {"_C", "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_is_below_it(path):
    layer = layer_of(path)
    assert layer in RANK, f"{path} belongs to no layer; add it to the list above"
    for imported in own_imports(path):
        assert imported in RANK, f"{path} imports {imported}, which is no layer"
        assert RANK[imported] < RANK[layer] or imported == layer, f"{path} imports {imported}, which is above it"


def test_ops_and_engine_import_without_the_accountant_and_the_product():
    """Other people's code imports these beside its own dependencies."""
    import subprocess
    import sys

    code = (
        "import sys, dpcgan_fast.ops, dpcgan_fast.engine, dpcgan_fast.adapters.functional; "
        "from dpcgan_fast.privacy import noise_key; "
        "heavy = {'dp_accounting', 'pandas', 'sklearn', 'pyarrow', 'pydantic', 'typer', 'rich', 'matplotlib', 'scipy', "
        "'jinja2', 'dpcgan_fast.cli', 'dpcgan_fast.synthesis', 'torch._dynamo'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


FORBIDDEN = (
    "pickle",
    "joblib",
    "torch.load(",
    "allow_pickle=True",
    "yaml.load",
    "torch.randn(",
    "torch.normal(",
    ".normal_(",
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_loads_code_from_files_or_draws_noise_from_torch(path):
    """Latent codes, the autoencoder's codes and the noise in synthetic signals come from torch.randn, initial weights
    from normal_: no DP noise."""
    text = path.read_text().replace("safetensors.torch.load(", "")
    allowed = {
        "models/networks.py": ["torch.randn("], "models/auto.py": [".normal_(", "torch.randn("],
        "models/wide.py": [".normal_("], "models/signals.py": ["torch.randn("],
        "synthesis/code_autoencoder.py": [".normal_("],
    }  # fmt: skip
    for word in FORBIDDEN:
        if word in allowed.get(str(path.relative_to(ROOT)), []):
            continue
        if word == "pickle" and path.name == "_noise.py":
            continue  # says that keys cannot be pickled
        assert word not in text, f"{path} contains {word}"
