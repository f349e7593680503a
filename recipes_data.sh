# The data of the recipes, converted from original files. Sourced by run.sh, after recipes.sh.
# shellcheck shell=bash

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

# In DATA_DIR the tasks of a lifelong recipe whose original files are named and that are not there yet, as many
# questions as in L2KD's released data: 6,604 and 6,525 for training, of E2E 6,000 and, one text each, 2,000 to test.
lifelong_data_for() {
    local task order="${1#lifelong-}"
    for task in $(lifelong_tasks "${order%%-*}"); do
        [ ! -f "$DATA_DIR/${task}_to_squad-train-v2.0.json" ] || continue
        case "$task" in
        cnn_dailymail) [ -z "${CNN_DAILYMAIL_DIR:-}" ] || py -m data.convert squad-cnn_dailymail --train "$CNN_DAILYMAIL_DIR/train.csv" \
            --test "$CNN_DAILYMAIL_DIR/test.csv" --train_sample 6604 --output "$DATA_DIR" ;;
        wikisql) [ -z "${WIKISQL_DIR:-}" ] || py -m data.convert squad-wikisql --train "$WIKISQL_DIR/train.jsonl" \
            --test "$WIKISQL_DIR/test.jsonl" --train_sample 6525 --output "$DATA_DIR" ;;
        e2enlg) [ -z "${E2E_DIR:-}" ] || py -m data.convert squad-e2e --train "$E2E_DIR/trainset.csv" --test "$E2E_DIR/devset.csv" \
            --train_sample 6000 --test_sample 2000 --single_reference --output "$DATA_DIR" ;;
        esac
    done
}

# Stops where GLUE_DIR does not hold GLUE.
need_glue() {
    [ -f "$GLUE_DIR/CoLA/train.tsv" ] || {
        echo "error: GLUE_DIR: no CoLA/train.tsv in $GLUE_DIR" >&2
        echo "  expected: the folder of CoLA, MRPC and GLUE's other folders" >&2
        echo "  remedy:   GLUE_DIR=/path/to/it ./run.sh …" >&2
        exit 2
    }
}

# data/small/glue9: GLUE_DIR's folders, with MNLI and QQP of GLUE_PAIRS_DIR where it is set. Rebuilt when these change.
glue9_data() {
    local to=data/small/glue9 made="$GLUE_DIR ${GLUE_PAIRS_DIR:-}" task
    [ "$(cat $to/made_from 2>/dev/null)" != "$made" ] || return 0
    need_glue
    rm -rf $to.part
    mkdir -p data/small
    cp -r "$GLUE_DIR" $to.part
    if [ -n "${GLUE_PAIRS_DIR:-}" ]; then
        for task in MNLI QQP; do
            rm -rf "${to:?}.part/$task"
            py -m data.convert glue-pairs --task "$(echo $task | tr MNLIQP mnliqp)" --train "$GLUE_PAIRS_DIR/$task/train.json" \
                --valid "$GLUE_PAIRS_DIR/$task/dev.json" --output $to.part
        done
    fi
    echo "$made" > $to.part/made_from
    rm -rf $to
    mv $to.part $to
}

# The data of a recipe, converted from the original files where they are not there yet.
data_for() {
    local at
    case "$1" in
    glue9-*) glue9_data ;;
    minilm5-*) need_glue ;;
    e2e-* | e2e10k-* | glue5-nlg | small-nlg-* | five-nlg-*)
        [ -f data/small/nlg.json ] || { at="$(folder E2E_DIR "trainset.csv and devset.csv")" && py -m data.convert e2e \
            --train "$at/trainset.csv" --valid_from_train 300 --test "$at/devset.csv" --output data/small/nlg.json; } ;;
    multi30k-* | small-mt-* | five-mt-*)
        [ -f data/small/mt.json ] || { at="$(folder MULTI30K_DIR "train.en.gz and the others")" && py -m data.convert multi30k \
            --folder "$at" --output data/small/mt.json; } ;;
    small-dialogue-* | five-dialogue-*)
        [ -f data/small/dialogue.json ] || { at="$(folder PERSONACHAT_DIR "train_self_original_no_cands.txt")" && py -m data.convert personachat \
            --train "$at/train_self_original_no_cands.txt" --valid "$at/valid_self_original_no_cands.txt" --valid_limit 60 \
            --output data/small/dialogue.json; } ;;
    small-qa-* | five-qa-*)
        [ -f data/small/qa.json ] || { at="$(folder SQUAD_DIR "xquad.en.json and dev-v2.0.json")" && py -m data.convert squad \
            --train "$at/xquad.en.json" "$at/dev-v2.0.json" --valid_from_train 60 --output data/small/qa.json; } ;;
    five-summarization-*)
        [ -f data/small/summarization.json ] || {
            at="$(folder SUPERNI_DIR "task1290_xsum_summarization (SuperNI of SAPT's CL_Benchmark)")/task1290_xsum_summarization" &&
                py -m data.convert superni --train "$at/train.json" --valid_from_train 50 --test "$at/test.json" --output data/small/summarization.json; } ;;
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
    superni-*)
        [ -f data/small/superni/task591_sciq_answer_generation_to_squad-test-v2.0.json ] || {
            at="$(folder SUPERNI_DIR "task591_sciq_answer_generation and the other tasks (SuperNI of SAPT's CL_Benchmark)")" &&
                py -m data.convert squad-superni --folder "$at" --output data/small/superni; } ;;
    clbench-*)
        [ -f data/small/clbench/cl.wic_to_squad-test-v2.0.json ] || {
            at="$(folder CL_BENCHMARK_DIR "SC, NLI, WiC and the others (O-LoRA's CL_Benchmark)")" &&
                py -m data.convert squad-classification --folder "$at" --output data/small/clbench; } ;;
    topics-*)
        if [ ! -f data/small/topics/SST-2/train.tsv ]; then
            need_glue
            data_for clbench-finetune
            mkdir -p data/small/topics
            cp data/small/clbench/cl.agnews_* data/small/clbench/cl.amazon_* data/small/topics
            cp -r "$GLUE_DIR/SST-2" data/small/topics
        fi ;;
    lifelong-*) lifelong_data_for "$1" ;;
    glue5-*)
        case "$1" in glue5-*-nlg) ;; *) need_glue ;; esac
        case "$1" in glue5-*-nlg | glue5-adapters | glue5-finetune | glue5-lora | glue5-hyperformer*) data_for glue5-nlg ;; esac ;;
    small-multitask | small-combine | five-multitask | five-combine)
        for task in $(scale_tasks "${1%%-*}"); do data_for "${1%%-*}-$task-"; done ;;
    esac
}
