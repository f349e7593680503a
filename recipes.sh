# The recipes: what each runs, and the scores that belong to it. Sourced by run.sh, with recipes_data.sh.
# shellcheck shell=bash

# Published adapter widths, in the order of the released model's tasks.
TASKS="mt summarization dialogue qa nlg"
width() { case "$1" in mt | qa) echo 300 ;; summarization | dialogue) echo 100 ;; nlg) echo 10 ;; *) return 1 ;; esac; }

# GLUE's official folders, and the T5 vocabulary that a T5 from scratch is given.
GLUE_DIR="${GLUE_DIR:-data/glue}"
T5_TOKENIZER="${T5_TOKENIZER:-spiece.model}"

# Five GLUE tasks and E2E as text, on SmolLM2.
GLUE5_TASKS="cola sst2 mrpc stsb rte nlg"
# Topics and sentiment: what a T5 can learn that was pretrained here for minutes.
TOPICS="cl.agnews cl.amazon sst2"
MINILM5_TASKS="cola sst-2 mrpc sts-b rte"
GLUE9_TASKS="cola mnli rte wnli qqp sts-b sst-2 qnli mrpc"
glue5_data() { case "$1" in nlg) echo data/small/nlg.json ;; *) echo "$GLUE_DIR" ;; esac; }

# The real runs on SmolLM2, at two scales. small: few rows; five: the five tasks of the VLM with as many rows as the
# available public files have, up to 5,000. One epoch in batches of 8.
scale_tasks() { case "$1" in small) echo "nlg mt dialogue qa" ;; five) echo "nlg mt summarization dialogue qa" ;; *) return 1 ;; esac; }
SCALE_STEPS="--n_epochs 1 --train_batch_size 8"

# At scale $1 of task $2: its data, examples, adapter width, learning rate, or how outputs are scored, as $3 says.
scaled() {
    local scale="$1" task="$2" column="$3"
    case " $(scale_tasks "$scale") " in *" $task "*) ;; *) return 1 ;; esac
    # Width, rate, longest output, and of the small runs examples and scored instances.
    case "$task" in
    nlg) set -- 64 3e-3 80 1000 200 ;;
    mt) set -- 300 2e-3 60 1500 300 ;;
    summarization) set -- 100 2e-3 80 ;;
    dialogue) set -- 100 2e-3 40 800 300 ;;
    qa) set -- 300 2e-3 30 500 300 ;;
    esac
    [ "$scale" = small ] || set -- "$1" "$2" "$3" 5000
    case "$column" in
    data) echo "data/small/$task.json" ;;
    examples) echo "$4" ;;
    width) echo "$1" ;;
    rate) echo "$2" ;;
    scored) echo "${5:+--limit $5 }--max_length $3" ;;
    esac
}

# Sequences of tasks of the published lifelong recipes. L2KD's: WOZ, CNN/DailyMail and WikiSQL in every order, two of five
# tasks in both directions. LAMOL's: SST (t), QA-SRL (r) and WOZ (w) in every order, five tasks of decaNLP from the largest
# to the smallest, five of text classification in the four orders of de Masson d'Autume et al. (2019).
LIFELONG_ORDERS="wcs wsc cws csw swc scw nlg nlg_reversed tc tc_reversed trw twr rtw rwt wtr wrt deca tc1 tc2 tc3 tc4"
LIFELONG_METHODS="lamol kd seqkd seqsoftkd finetune multitask ewc mas gem"
# -real: real samples are replayed instead of generated ones; -bos: generated ones begin after the backbone's own first
# token; -1500: as many samples of each task.
SMALL_LIFELONG="finetune lamol kd seqkd ewc mas gem multitask er agem derpp lwf olora progprompt isolated lamol-real kd-real lamol-bos kd-bos seqkd-bos lamol-1500 kd-1500 seqkd-1500"
CONTINUAL="finetune er lamol l2kd ewc mas gem agem derpp lwf olora progprompt isolated multitask"
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
    trw) echo "sst srl woz.en" ;;
    twr) echo "sst woz.en srl" ;;
    rtw) echo "srl sst woz.en" ;;
    rwt) echo "srl woz.en sst" ;;
    wtr) echo "woz.en sst srl" ;;
    wrt) echo "woz.en srl sst" ;;
    deca) echo "squad2 wikisql sst srl woz.en" ;;
    tc1) echo "yelp ag dbpedia amazon yahoo" ;;
    tc2) echo "dbpedia yahoo ag amazon yelp" ;;
    tc3) echo "yelp yahoo amazon dbpedia ag" ;;
    tc4) echo "ag yelp amazon yahoo dbpedia" ;;
    *) return 1 ;;
    esac
}

# The benchmarks of continual learning on SmolLM2, every method with a LoRA (the prompts of ProgressivePrompts apart): tasks,
# training rows of each and what answers are scored. Of O-LoRA's fifteen classifications its repository holds ten; who has all
# adds --tasks long-order4.
continual() {
    case "$1" in
    superni) set -- "$2" superni-order1 200 "" ;;
    clbench) set -- "$2" "cl.amazon cl.mnli cl.cb cl.copa cl.qqp cl.rte cl.sst2 cl.agnews cl.boolq cl.wic" 400 "--limit 100" ;;
    *) return 1 ;;
    esac
    case "$1" in tasks) echo "$2" ;; examples) echo "$3" ;; scored) echo "$4" ;; esac
}

# Rows of the papers, on their backbones and data, whose sizes bench/plan knows. Those on SmolLM2 (small-*, e2e-*, …) are of
# this toolkit, on data whose rows are counted once they are converted.
published() { case "$1" in vlm-* | lifelong-* | t5-* | camtl-*) ;; *) return 1 ;; esac; }

# The precision in which recipe $1, called with the command line $2, is scored: that of the published runs is float32.
precision() {
    case "$2 " in *" --fp32 "*) echo --fp32 ;; *) ! published "$1" || echo --fp32 ;; esac
}

# What a recipe runs, as one line, so that `list` can print it. The settings that are not named are the task's
# published ones (data/tasks/<task>.py).
recipe() {
    local kind="${1#*-}" task
    task="${kind%%-*}"
    kind="${kind#*-}"
    case "$1" in
    vlm-multitask) echo "train_vlm.py --tasks $TASKS --model_checkpoint $MODEL --fp32 --gradient_accumulation_steps 16 --train_batch_size 1 --valid_batch_size 1 --n_epochs 3 --output_dir runs/vlm-multitask" ;;
    vlm-multitask-unfrozen) echo "$(recipe vlm-multitask)-unfrozen --unfreeze_backbone --select last" ;;
    vlm-combine) echo "combine_all.py --checkpoints mt=runs/vlm-mt-distilled summarization=runs/vlm-summarization-distilled dialogue=runs/vlm-dialogue-distilled qa=runs/vlm-qa-adapter nlg=runs/vlm-nlg-adapter --output runs/VLM" ;;
    vlm-evaluate) echo "evaluate_vlm.py --task all --no_sample --fp32 --model_checkpoint runs/VLM" ;;
    vlm-*-*)
        width "$task" >/dev/null || return 1
        local train="train.py --task $task --model_checkpoint $MODEL --fp32" out="--output_dir runs/$1" adapter
        adapter="--adapter_bottleneck $(width "$task")"
        case "$kind" in
        finetune) echo "$train $out" ;;
        adapter) echo "$train $adapter $out" ;;
        distil) echo "sentence_distiller.py --task $task --no_sample --fp32 --model_checkpoint runs/vlm-$task-finetune" ;;
        distilled) [ "$task" != summarization ] || adapter="$adapter --n_epochs 5"; echo "$train $adapter --distillation $out" ;;
        emb_only | outputlayer_only | random_init | self_copy) echo "$train --$kind $out" ;;
        *) return 1 ;;
        esac ;;
    small-multitask | five-multitask)
        local data="" widths="" limits="" scale="${1%%-*}"
        for task in $(scale_tasks "$scale"); do
            data="$data $task=$(scaled "$scale" "$task" data)" widths="$widths $task=$(scaled "$scale" "$task" width)" limits="$limits $task=$(scaled "$scale" "$task" examples)"
        done
        echo "train_vlm.py --tasks $(scale_tasks "$scale") --data$data --adapter_bottleneck$widths --limit$limits --model_checkpoint smollm2 --row_init words --lr 2e-3 $SCALE_STEPS --gradient_accumulation_steps 1 --no_validation --output_dir runs/$1" ;;
    small-combine | five-combine)
        local sources=""
        for task in $(scale_tasks "${1%%-*}"); do sources="$sources $task=runs/${1%%-*}-$task-adapter"; done
        echo "combine_all.py --checkpoints$sources --output runs/$1" ;;
    t5-*)
        # configs/test.json is no published row.
        [ "$1" != t5-test ] && [ -f "configs/${1#t5-}.json" ] || return 1
        echo "train_t5.py configs/${1#t5-}.json --data_dir $GLUE_DIR --fp32" ;;
    small-t5-pretrain) echo "pretrain_t5.py --from_scratch --config_name t5-tiny --tokenizer_name $T5_TOKENIZER --tasks cola sst2 mrpc stsb rte qnli --data_dir $GLUE_DIR --max_source_length 128 --max_steps 600 --per_device_train_batch_size 32 --learning_rate 2e-3 --warmup_steps 50 --lr_scheduler linear --logging_steps 50 --output_dir runs/small-t5-pretrain" ;;
    small-t5-*)
        local tasks="cola sst2 mrpc stsb rte" method="${1#small-t5-}"
        [ -f "configs/$method.json" ] || return 1
        case "$method" in finetune_single_task | adapters) tasks=mrpc ;; esac
        echo "train_t5.py configs/$method.json --data_dir $GLUE_DIR --tasks $tasks --eval_tasks $tasks --model_name_or_path runs/small-t5-pretrain --tokenizer_name runs/small-t5-pretrain --reduction_factor 8 --learning_rate 1e-3 --warmup_steps 50 --max_steps 500 --eval_steps 250 --save_steps 250 --per_device_eval_batch_size 64 --output_dir runs/$1" ;;
    topics-*)
        # From random weights, all of them trained: 2,400 steps of all three tasks, 800 of one alone.
        local tasks="$TOPICS" method="${1#topics-}" steps=2400 more="--unfreeze_model true --reduction_factor 8"
        case "$method" in
        finetune_single_task-*)
            tasks="${method#*-}" method="${method%%-*}" steps=800 more=""
            case " $TOPICS " in *" $tasks "*) ;; *) return 1 ;; esac ;;
        finetune) more="" ;;
        adapters_dagger | hyperformer | hyperformer++) ;;
        *) return 1 ;;
        esac
        echo "train_t5.py configs/$method.json --from_scratch true --config_name t5-tiny --config_overrides d_model=128,d_ff=512,num_layers=2,num_decoder_layers=2 --model_name_or_path= --tokenizer_name $T5_TOKENIZER --data_dir data/small/topics --tasks $tasks --eval_tasks $tasks --max_source_length 64 --max_target_length 8 --val_max_target_length 8 --test_max_target_length 8 $more --label_smoothing 0 --learning_rate 1e-3 --warmup_steps 50 --max_steps $steps --eval_steps $((steps / 4)) --save_steps $((steps / 4)) --per_device_eval_batch_size 64 --logging_steps 100 --output_dir runs/$1" ;;
    camtl-*)
        local train="train_camtl.py --data_dir $GLUE_DIR --fp32 --do_train --do_eval --do_predict --num_train_epochs 5 --learning_rate 2e-5 --seed 12"
        case "${1%-uncertainty}" in
        camtl-plain) train="$train --model_name_or_path bert-base-cased --form plain" ;;
        camtl-base) train="$train --model_name_or_path CA-MTL-base --freeze_encoder_layers 0-5" ;;
        # The original README said 0-6, then 0-5, now 0-4.
        camtl-base-0-4) train="$train --model_name_or_path CA-MTL-base --freeze_encoder_layers 0-4" ;;
        camtl-large) train="$train --model_name_or_path CA-MTL-large --freeze_encoder_layers 0-11" ;;
        *) return 1 ;;
        esac
        case "$1" in *-uncertainty) train="$train --use_mt_uncertainty" ;; esac
        echo "$train --output_dir runs/$1" ;;
    small-camtl-* | glue9-*)
        local train data="$GLUE_DIR --limit 1000" share=0.7
        # All rows; chosen by uncertainty about as many as two epochs of all tasks have.
        case "$1" in glue9-*) data=data/small/glue9 share=0.45 ;; esac
        train="train_camtl.py --model_name_or_path minilm --data_dir $data --max_seq_length 64 --do_train --do_eval --num_train_epochs 2 --learning_rate 1e-4 --per_device_train_batch_size 32 --per_device_eval_batch_size 32"
        kind="${1#small-camtl-}" kind="${kind#glue9-}"
        case "$kind" in
        plain | base) train="$train --form $kind" ;;
        # MiniLM has six layers: half of them, as the published 0-5 of BERT's twelve.
        base-0-2) train="$train --form base --freeze_encoder_layers 0-2" ;;
        uncertainty) train="$train --form base --use_mt_uncertainty --percent_of_max_data_size $share" ;;
        single-*)
            case " $GLUE9_TASKS " in *" ${kind#single-} "*) ;; *) return 1 ;; esac
            train="$train --form plain --tasks ${kind#single-}" ;;
        *) return 1 ;;
        esac
        echo "$train --output_dir runs/$1" ;;
    minilm5-*)
        # Five GLUE tasks in a MiniLM, 1,000 rows of each, twice; of one task alone: its own share. A step of a hypernetwork
        # moves an adapter's weight by the rate times the size of the generators' input, hence 8 of these instead of 64.
        local tasks="$MINILM5_TASKS" adapters="--reduction_factor 16 --learning_rate 3e-3"
        kind="${1#minilm5-}"
        case "$kind" in
        full-* | adapters-*)
            tasks="${kind#*-}" kind="${kind%%-*}"
            case " $MINILM5_TASKS " in *" $tasks "*) ;; *) return 1 ;; esac ;;
        esac
        case "$kind" in
        full) adapters="--learning_rate 1e-4" ;;
        adapters) ;;
        lora) adapters="--learning_rate 3e-3" ;;
        hyperformer | hyperformer++) adapters="$adapters --projected_task_embedding_dim 8" ;;
        *) return 1 ;;
        esac
        echo "train_camtl.py --model_name_or_path minilm --data_dir $GLUE_DIR --tasks $tasks --limit 1000 --max_seq_length 64 --do_train --do_eval --num_train_epochs 2 --per_device_train_batch_size 32 --per_device_eval_batch_size 32 --method $kind $adapters --output_dir runs/$1" ;;
    glue5-*)
        # One budget for all: 2,000 rows of each task, once. Of one task alone: its own share of it. The hypernetworks' settings
        # are those of e2e10k-hyperformer++.
        local tasks="$GLUE5_TASKS" data="" train
        kind="${1#glue5-}"
        case "$kind" in
        finetune-* | adapter-*)
            tasks="${kind#*-}" kind="${kind%%-*}"
            case " $GLUE5_TASKS " in *" $tasks "*) ;; *) return 1 ;; esac ;;
        esac
        for task in $tasks; do data="$data $task=$(glue5_data "$task")"; done
        train="train_vlm.py --tasks $tasks --data$data --limit 2000 --model_checkpoint smollm2 --row_init words --train_batch_size 16 --gradient_accumulation_steps 1 --n_epochs 1 --no_validation"
        case "$kind" in
        finetune) train="$train --unfreeze_backbone --adapter_bottleneck 0 --lr 1e-4" ;;
        adapter | adapters) train="$train --adapter_bottleneck 64 --lr 2e-3" ;;
        hyperformer | hyperformer++) train="$train --method $kind --projected_task_embedding_dim 8 --lr 3e-3" ;;
        lora) train="$train --method lora --lora_rank 16 --lr 2e-3" ;;
        *) return 1 ;;
        esac
        echo "$train --output_dir runs/$1" ;;
    small-lifelong-*)
        local train="train_lifelong.py --data_dir data/small/lifelong --model_dir_root runs/small-lifelong --tasks sst rnnlg.rest woz.en --model_name smollm2 --adapter_bottleneck 64 --learning_rate 3e-3 --add_task_tokens --max_len 256 --limit 400 --n_train_epochs 3 --train_batch_size 8 --only_final"
        kind="${1#small-lifelong-}"
        case "$kind" in
        lamol-real | kd-real) train="$train --real_sample" ;;
        lamol-bos | kd-bos | seqkd-bos) train="$train --lead_bos" ;;
        lamol-1500 | kd-1500 | seqkd-1500) train="${train/--limit 400/--limit 1500}" train="${train/runs\/small-lifelong/runs/small-lifelong-1500}" ;;
        *-*) return 1 ;;
        esac
        case "${kind%%-*}" in
        lamol) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2" ;;
        kd) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2 --distil --train_teachers" ;;
        seqkd) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2 --seq_distil --train_teachers" ;;
        ewc) echo "$train --seq_train_type ewc --reg_lambda 1e10" ;;
        mas) echo "$train --seq_train_type mas --reg_lambda 1e11" ;;
        gem) echo "$train --seq_train_type gem --gen_lm_sample_percentage 0.02" ;;
        er | agem | derpp) echo "$train --seq_train_type $kind --memory_size 0.02" ;;
        olora) echo "${train/--adapter_bottleneck 64/--method lora} --seq_train_type olora" ;;
        progprompt) echo "${train/--adapter_bottleneck 64 --learning_rate 3e-3/--method prefix --learning_rate 3e-2} --seq_train_type progprompt" ;;
        finetune | multitask | lwf | isolated) echo "$train --seq_train_type $kind" ;;
        *) return 1 ;;
        esac ;;
    superni-* | clbench-*)
        local name="${1%%-*}" train kind="${1#*-}"
        train="train_lifelong.py --data_dir data/small/$name --model_dir_root runs/$name --tasks $(continual "$name" tasks) --model_name smollm2 --method lora --learning_rate 3e-3 --add_task_tokens --max_len 256 --limit $(continual "$name" examples) --n_train_epochs 1 --train_batch_size 4 --only_final"
        case "$kind" in
        lamol) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2" ;;
        l2kd) echo "$train --seq_train_type lll --gen_lm_sample_percentage 0.2 --distil --seq_distil --train_teachers" ;;
        ewc | mas) echo "$train --seq_train_type $kind --normalize_importance" ;;
        # Two samples per task: every step looks at those of all tasks before.
        gem) echo "$train --seq_train_type gem --gen_lm_sample_percentage $([ "$name" = superni ] && echo 0.01 || echo 0.005)" ;;
        # Of the memory half as many rows as of the task.
        er | agem | derpp) echo "$train --seq_train_type $kind --memory_size 0.02 --memory_batch_size 2" ;;
        progprompt) echo "${train/--method lora --learning_rate 3e-3/--method prefix --learning_rate 3e-2} --seq_train_type progprompt" ;;
        finetune | lwf | olora | isolated | multitask) echo "$train --seq_train_type $kind" ;;
        *) return 1 ;;
        esac ;;
    small-*-* | five-*-*)
        local scale="${1%%-*}"
        scaled "$scale" "$task" width >/dev/null || return 1
        local train="train.py --task $task --dataset_path $(scaled "$scale" "$task" data) --limit $(scaled "$scale" "$task" examples) --model_checkpoint smollm2 --row_init words $SCALE_STEPS --gradient_accumulation_steps 1 --no_validation"
        local adapter="--adapter_bottleneck $(scaled "$scale" "$task" width) --lr $(scaled "$scale" "$task" rate)" out="--output_dir runs/$1" teacher="--teacher runs/$scale-$task-finetune"
        case "$kind" in
        finetune) echo "$train --lr 1e-4 $out" ;;
        adapter) echo "$train $adapter $out" ;;
        distil) echo "sentence_distiller.py --task $task --dataset_path $(scaled "$scale" "$task" data) --limit $(scaled "$scale" "$task" examples) --no_sample --batch_size 64 --max_length $(option --max_length "$(scaled "$scale" "$task" scored)") --model_checkpoint runs/$scale-$task-finetune" ;;
        distilled) echo "$train $adapter --distillation $out" ;;
        word) echo "$train $adapter $teacher --kd word $out" ;;
        both) echo "$train $adapter $teacher --kd both $out" ;;
        *) return 1 ;;
        esac ;;
    lifelong-*-*)
        lifelong_tasks "$task" >/dev/null || return 1
        local train="train_lifelong.py --model_name $MODEL --tasks $(lifelong_tasks "$task") --fp32 --add_task_tokens --gen_lm_sample_percentage 0.2"
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
    e2e-adapter | e2e-finetune | e2e10k-*)
        # 2,000 or all rows of the public training file. Rates were chosen on the rows that are held out of it for validation.
        local train="train.py --task nlg --dataset_path data/small/nlg.json --model_checkpoint smollm2 --row_init words --train_batch_size 16 --gradient_accumulation_steps 1" epochs=3
        case "$1" in e2e-*) train="$train --limit 2000" ;; e2e10k-finetune) epochs=2 ;; esac
        case "$kind" in
        adapter) train="$train --adapter_bottleneck 64 --lr 3e-3" ;;
        lora) train="$train --method lora --lora_rank 16 --lr 2e-3" ;;
        finetune) train="$train --lr 1e-4" ;;
        embeddings) train="$train --emb_only --lr 1e-2" ;;
        hyperformer++) train="$train --method hyperformer++ --projected_task_embedding_dim 8 --lr 3e-3" ;;
        *) return 1 ;;
        esac
        echo "$train --n_epochs $epochs --output_dir runs/$1" ;;
    e2e-untrained) echo "evaluate.py --task nlg --dataset_path data/small/nlg.json --no_sample --batch_size 64 --max_length 60 --model_checkpoint smollm2 --output_dir results/e2e-untrained" ;;
    multi30k-adapter) echo "train.py --task mt --dataset_path data/small/mt.json --limit 3000 --model_checkpoint smollm2 --adapter_bottleneck 300 --row_init words --lr 2e-3 --train_batch_size 32 --gradient_accumulation_steps 1 --n_epochs 1 --output_dir runs/multi30k-adapter" ;;
    *) return 1 ;;
    esac
}

recipes() {
    echo "t5-finetune_single_task t5-finetune t5-adapters t5-adapters_dagger t5-hyperformer t5-hyperformer-per-layer t5-hyperformer++"
    echo "camtl-plain camtl-base camtl-base-uncertainty camtl-base-0-4 camtl-base-0-4-uncertainty camtl-large camtl-large-uncertainty"
    echo "small-camtl-plain small-camtl-base small-camtl-uncertainty small-camtl-single-cola small-t5-pretrain"
    for kind in finetune_single_task finetune adapters adapters_dagger hyperformer hyperformer++; do echo "small-t5-$kind"; done
    echo "topics-finetune topics-adapters_dagger topics-hyperformer topics-hyperformer++"
    for task in $TOPICS; do echo "topics-finetune_single_task-$task"; done
    for task in $TASKS; do echo "vlm-$task-finetune vlm-$task-adapter"; done
    for task in mt summarization dialogue; do echo "vlm-$task-distil vlm-$task-distilled"; done
    echo "vlm-combine vlm-evaluate vlm-multitask vlm-multitask-unfrozen"
    echo "vlm-mt-emb_only vlm-mt-outputlayer_only vlm-mt-random_init vlm-summarization-self_copy"
    for scale in small five; do
        for task in $(scale_tasks $scale); do for kind in finetune adapter distil distilled; do echo "$scale-$task-$kind"; done; done
        echo "$scale-mt-word $scale-mt-both $scale-combine $scale-multitask"
    done
    echo "e2e-adapter e2e-finetune e2e-untrained multi30k-adapter"
    for kind in adapter lora finetune embeddings hyperformer++; do echo "e2e10k-$kind"; done
    for kind in plain base base-0-2 uncertainty; do echo "glue9-$kind"; done
    for task in $GLUE9_TASKS; do echo "glue9-single-$task"; done
    for kind in full adapters hyperformer hyperformer++ lora; do echo "minilm5-$kind"; done
    for task in $MINILM5_TASKS; do echo "minilm5-full-$task minilm5-adapters-$task"; done
    for kind in finetune adapters hyperformer hyperformer++ lora; do echo "glue5-$kind"; done
    for task in $GLUE5_TASKS; do echo "glue5-finetune-$task glue5-adapter-$task"; done
    for kind in $SMALL_LIFELONG; do echo "small-lifelong-$kind"; done
    for kind in $CONTINUAL; do echo "superni-$kind"; done
    for kind in $CONTINUAL; do echo "clbench-$kind"; done
    for kind in $LIFELONG_METHODS; do echo "lifelong-wcs-$kind"; done
}

# The command line $1 without the flags that the other words name: scripts refuse a flag of several values given twice.
without_typed() {
    local word flag="" line="" named=" "
    for word in "${@:2}"; do
        case "$word" in --*) word="${word%%=*}" named+="${word//-/_} " ;; esac
    done
    for word in $1; do
        case "$word" in --*) flag="${word%%=*}" flag="${flag//-/_}" ;; esac
        case "$named" in *" ${flag:-none} "*) ;; *) line+="${line:+ }$word" ;; esac
    done
    echo "$line"
}

# The last value of a flag in a command line.
option() { echo "$2" | sed -n "s/.*${1//_/[-_]}[= ]\{1,\}\([^ ]*\).*/\1/p"; }

# Where train_lifelong.py, called with these flags, puts its models.
lifelong_run() {
    py -c 'import sys, train_lifelong; from lifelong import sequence; args = train_lifelong.parser().parse_args(sys.argv[1:])
print(args.resume or args.output_dir or sequence.directory(args))' "$@"
}

# The tasks that a command line names, as part of a directory's name: all of them, or a sum of what is too long for one.
typed_tasks() {
    local tasks
    tasks="$(echo "$1" | sed -n 's/.*--tasks[= ]\{1,\}\(\([^ -][^ ]*[ ]*\)*\).*/\1/p' | tr -s ' ' '\n' | paste -sd _)"
    if [ ${#tasks} -gt 100 ]; then tasks="${tasks%%_*}_and_others_$(echo "$tasks" | cksum | cut -d' ' -f1)"; fi
    echo "$tasks"
}

# Where the scores of a lifelong recipe $1 go, called with the flags $2: another seed and other tasks have their own directory.
lifelong_results() {
    local seed tasks
    seed="$(option --seed "$2")" tasks="$(typed_tasks "$2")"
    case "$1" in
    lifelong-*) echo "results/$1" ;;
    *) echo "results/$1${tasks:+-$tasks}${seed:+-seed$seed}" ;;
    esac
}

# What was trained or combined is scored at once: how, for recipe $1 with the command line $2, of which $3 was typed.
score() {
    local run task data asked=""
    run="$(option --output_dir "$2")"
    run="${run:-$(option --output "$2")}"
    task="$(option --task "$2")"
    data="$(option --dataset_path "$2")"
    case "$2" in
    train_lifelong.py*)
        # shellcheck disable=SC2086
        run="$(lifelong_run ${2#* })"
        case "$1" in
        small-*) asked="--limit 100" ;;
        superni-* | clbench-*) asked="--trained_only $(continual "${1%%-*}" scored)" ;;
        esac
        # shellcheck disable=SC2046,SC2086
        py evaluate_lifelong.py --model_dirs "$run" $(precision "$1" "$2") $asked --output_dir "$(lifelong_results "$1" "$3")" ;;
    train.py*)
        # shellcheck disable=SC2086
        py evaluate.py --task "$task" --no_sample $(precision "$1" "$2") --batch_size 64 $(scaled "${1%%-*}" "$task" scored || true) \
            ${data:+--dataset_path "$data"} --model_checkpoint "$run" --output_dir "results/$(basename "$run")"
        if [ "${1%%-*}" = e2e10k ]; then
            py evaluate.py --task "$task" --no_sample --num_beams 4 --batch_size 32 $(precision "$1" "$2") --dataset_path "$data" --model_checkpoint "$run" \
                --output_dir "results/$(basename "$run")-beams"
        fi ;;
    train_vlm.py* | combine_all.py*)
        local tasks="" scale="${1%%-*}" scored=""
        case "$scale" in glue5) tasks="$(echo "$2" | sed 's/.* --tasks \(.*\) --data .*/\1/')" ;; small | five) tasks="$(scale_tasks "$scale")" ;; esac
        if [ -n "$tasks" ]; then
            # Task by task, scored as the single-task runs are.
            for task in $tasks; do
                case "$scale" in
                glue5) data="$(glue5_data "$task")" ;;
                *) data="$(scaled "$scale" "$task" data)" scored="$(scaled "$scale" "$task" scored)" ;;
                esac
                # shellcheck disable=SC2086
                py evaluate_vlm.py --task "$task" --no_sample $(precision "$1" "$2") --batch_size 64 $scored --dataset_path "$data" \
                    --model_checkpoint "$run" --output_dir "results/$(basename "$run")"
            done
        else
            # shellcheck disable=SC2046
            py evaluate_vlm.py --task all --no_sample $(precision "$1" "$2") --batch_size 64 --model_checkpoint "$run" --output_dir "results/$(basename "$run")"
        fi ;;
    esac
}

