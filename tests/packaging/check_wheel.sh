#!/usr/bin/env bash
# Builds the source distribution and from it the wheel, installs each into a clean environment outside of the tree, and runs
# what was installed. It compiles the extension twice, which takes a few minutes.
#
#   tests/packaging/check_wheel.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
pip=("$python" -m pip --quiet --disable-pip-version-check)

"${pip[@]}" install -c "$root/constraints.txt" "setuptools>=77" wheel torch numpy pybind11 ninja
cd "$root"
"$python" -c 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])' "$folder/dist" >/dev/null
cd "$folder"
"${pip[@]}" wheel --no-build-isolation --no-deps --wheel-dir dist dist/*.tar.gz
ls -l dist

for built in dist/*.whl dist/*.tar.gz; do
  "${pip[@]}" install --force-reinstall --no-deps --no-build-isolation "$built"
  "${pip[@]}" install -c "$root/constraints.txt" dpcgan_fast
  "$python" -m pip check
  "$python" "$root/tests/packaging/installed.py"
  venv/bin/dpcgan doctor
done
