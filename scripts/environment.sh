# Sourced by the other scripts: makes the virtual environment once, and activates it.
venv="${TFX_VENV:-.venv}"
if [ ! -x "$venv/bin/tfx" ]; then
  python=""
  for candidate in "${TFX_PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "error: tfx needs Python 3.11 or newer; install it, or name it with TFX_PYTHON=" >&2
    exit 2
  fi
  echo "making $venv with $("$python" --version) ..."
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --upgrade pip
  "$venv/bin/pip" install --quiet --constraint constraints.txt --editable ".${TFX_EXTRAS:-}"
fi
source "$venv/bin/activate"
