#!/usr/bin/env bash
# Make an environment and run the tests. --slow runs the long ones too; what follows goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
TFX_EXTRAS="[test]" TFX_VENV="${TFX_VENV:-.venv-test}" source scripts/environment.sh
which="not slow"
if [ "${1:-}" = "--slow" ]; then
  which="slow or not slow"
  shift
fi
ruff format --check .
ruff check .
python -m pytest -n 2 -m "$which" "$@"
