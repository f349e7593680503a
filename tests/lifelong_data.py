"""Tiny data of lifelong tasks, and the commands that learn them."""

import json

from versatile.data import question_samples as samples
from versatile.data.question_samples import QA
from versatile.data.question_tasks import TASKS

WORDS = ("the park", "a river", "an old house", "the city", "two children", "a book", "the library", "his teacher")
ANSWERS = {"ag": ("World", "Sports"), "sst": ("positive", "negative"), "schema": ("left", "right")}


def questions(task, count, start=0):
    """A task's samples; the answer follows from the context."""
    made = []
    for i in range(start, start + count):
        answer = i % 2
        context = f"{WORDS[i % 8]} near {WORDS[(i // 2) % 8]} {'is cheap' if answer else 'serves food'}"
        made.append(QA(context, f"what of {task}?", (ANSWERS[task][answer],), f"{task}-{i}"))
    return made


def write(folder, tasks=("ag", "sst"), train=10, test=4):
    """Write the files of these tasks; returns the folder."""
    for task in tasks:
        samples.save_samples(folder / TASKS[task].filename("train"), questions(task, train))
        samples.save_samples(folder / TASKS[task].filename("test"), questions(task, test, start=train))
    return folder


def command(data, out, mode, *more, tasks=("ag", "sst"), model="tiny-gpt2", batch=4):
    """The flags of train_lifelong.py for a run that takes seconds."""
    return ["--data_dir", str(data), "--model_dir_root", str(out), "--output_dir", str(out), "--tasks", *tasks,
            "--seq_train_type", mode, "--model_name", str(model), "--train_batch_size", str(batch), "--max_len", "48",
            "--n_train_epochs", "2", "--lr", "1e-3", "--gen_lm_sample_percentage", "0.4", "--fp32",
            *map(str, more)]  # fmt: skip


def report(folder):
    """The content of training_metrics.json."""
    return json.loads((folder / "training_metrics.json").read_text(encoding="utf-8"))


def openai_gpt(folder):
    """A tiny random OpenAI GPT, with a lower-casing tokenizer that knows no end of text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    texts = [text for task in ANSWERS for qa in questions(task, 8) for text in (qa.context, qa.question, *qa.answers)]
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    config = OpenAIGPTConfig(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    OpenAIGPTLMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
