#!/usr/bin/env bash
# Creates the virtual environment $1 for this checkout: the lock on Python 3.11, the newest that pyproject.toml allows elsewhere.
# Further arguments are packages to add, e.g. the oracle's torch. Run by the Makefile.
set -euo pipefail
venv=$1
shift
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Say: make PYTHON=python3.11 ..." >&2
  exit 2
}
"$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"

if [ "$("$venv/bin/python" -c 'import sys; print(sys.version_info[:2] == (3, 11))')" = True ]; then
  $pip install -r requirements.txt -r requirements-test.txt
  $pip install --no-deps -e .
else
  $pip install -e '.[test]'
fi
if [ $# -gt 0 ]; then
  $pip install "$@"
fi

# rapidocr asks for opencv-python-headless, we need contrib (CSRT, KCF): the wheels share one folder, so the last one installed wins.
opencv=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("opencv-contrib-python-headless"))')
$pip install --force-reinstall --no-deps "opencv-contrib-python-headless==$opencv"
