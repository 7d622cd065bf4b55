#!/usr/bin/env bash
# Make an environment, train a translation model on the embedded corpus, score it, use it.
# Nothing but packages is downloaded. Environment: TFX_PYTHON, TFX_VENV, TFX_RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
run="${TFX_RUN:-runs/quickstart}"

tfx train --config=quickstart --workdir="$run"
tfx eval --workdir="$run"

echo
echo "A few sentences (scripts/sentences.en; change them):"
tfx translate --workdir="$run" --input=scripts/sentences.en | paste -d'\n' scripts/sentences.en - |
  sed 'N; s/\(.*\)\n\(.*\)/  \1\n    -> \2/'

cat <<TEXT

The score is of a synthetic corpus: unseen sentences of the grammar that it was trained on.
Next, after \`source $venv/bin/activate\`:
  a sentence of your own     echo "The old man sees a dog." | tfx translate --workdir=$run
  a conversation             tfx translate --workdir=$run
  text files of your own     tfx train --config=text_pair:train.en,train.de,valid.en,valid.de --workdir=runs/mine
  a config of your own       cp configs/quickstart.py mine.py; tfx train --config=mine.py --workdir=runs/mine
  what there is to change    tfx config --config=quickstart
TEXT
