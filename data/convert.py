"""Convert public data sets from their original files to the toolkit's task json.

    python -m data.convert e2e --train e2e/trainset.csv --valid e2e/devset.csv \\
        --test e2e/testset_w_refs.csv --output data/NLG/data.json
    python -m data.convert e2e --train e2e/trainset.csv --valid_from_train 300 --test e2e/devset.csv \\
        --output data/NLG/data.json
    python -m data.convert multi30k --folder multi30k --output data/NMT/data_en_ge.json
    python -m data.convert iwslt --folder iwslt2017 --pair en-de --output data/NMT/data_en_ge.json
    python -m data.convert parallel --source_lang en --target_lang de --train train.en.gz train.de.gz \\
        --valid val.en.gz val.de.gz --test test.en.gz test.de.gz --output data/NMT/data_en_ge.json
    python -m data.convert personachat --train train_self_original.txt --valid valid_self_original.txt \\
        --output data/persona/data.json
    python -m data.convert personachat --json personachat_self_original.json --keep_candidates 2 \\
        --output data/persona/data.json
    python -m data.convert coqa --train coqa-train-v1.0.json --valid coqa-dev-v1.0.json \\
        --output data/CoQA/data.json
    python -m data.convert squad --train train-v2.0.json --valid_from_train 500 --test dev-v2.0.json \\
        --output data/SQuAD/data.json
    python -m data.convert cnn_dailymail --train train.csv --valid validation.csv --test test.csv \\
        --output data/CNNDAILY/data.json
    python -m data.convert cnn_dailymail --stories cnn/stories dailymail/stories --train_list all_train.txt \\
        --valid_list all_val.txt --test_list all_test.txt --output data/CNNDAILY/data.json
    python -m data.convert superni --train task1290_xsum_summarization/train.json --valid_from_train 50 \\
        --test task1290_xsum_summarization/test.json --output data/CNNDAILY/data.json
    python -m data.convert webnlg --train en/train --valid en/dev \\
        --test en/test/rdf-to-text-generation-test-data-with-refs-en.xml --output data/WebNLG/data.json
    python -m data.convert e2e --help

For train_camtl.py and train_t5.py, --output is the folder that contains GLUE's folders:

    python -m data.convert glue-pairs --task mnli --train MNLI/train.json --valid MNLI/dev.json --output data/glue

For lifelong learning, --output is the data directory, and every split becomes a file of LAMOL's SQuAD-style json in it:

    python -m data.convert squad-e2e --train trainset.csv --test testset_w_refs.csv --output data/lifelong
    python -m data.convert squad-rnnlg --domain hotel --train hotel/train.json --test hotel/test.json \\
        --output data/lifelong
    python -m data.convert squad-woz --train woz_train_en.json --valid woz_validate_en.json \\
        --test woz_test_en.json --output data/lifelong
    python -m data.convert squad-wikisql --train train.jsonl --valid dev.jsonl --test test.jsonl --output data/lifelong
    python -m data.convert squad-cnn_dailymail --train train.csv --valid validation.csv --test test.csv \\
        --output data/lifelong
    python -m data.convert squad-ag --train ag_news_csv/train.csv --test ag_news_csv/test.csv --output data/lifelong
    python -m data.convert squad-dbpedia --train dbpedia_csv/train.csv --test dbpedia_csv/test.csv \\
        --output data/lifelong
    python -m data.convert squad-yahoo --train yahoo_answers_csv/train.csv --test yahoo_answers_csv/test.csv \\
        --output data/lifelong
    python -m data.convert squad-yelp --train yelp_review_full_csv/train.csv --test yelp_review_full_csv/test.csv \\
        --output data/lifelong
    python -m data.convert squad-amazon --train amazon_review_full_csv/train.csv \\
        --test amazon_review_full_csv/test.csv --output data/lifelong
    python -m data.convert squad-sst --train train_binary_sent.csv --valid dev_binary_sent.csv \\
        --test test_binary_sent.csv --output data/lifelong
    python -m data.convert squad-qasrl --train wikinews.train.gold.csv wikinews.train.full.csv \\
        --valid wikinews.dev.gold.csv wikinews.dev.full.csv --output data/lifelong
    python -m data.convert squad-squad1 --train train-v1.1.json --valid dev-v1.1.json --output data/lifelong
    python -m data.convert squad-squad2 --train train-v2.0.json --valid dev-v2.0.json --output data/lifelong
    python -m data.convert squad-iwslt --folder iwslt2017 --output data/lifelong
    python -m data.convert squad-multinli --train train.tsv --valid dev_matched.tsv dev_mismatched.tsv \\
        --output data/lifelong
    python -m data.convert squad-zre --train relation_splits/train.0 --valid relation_splits/dev.0 \\
        --test relation_splits/test.0 --output data/lifelong
    python -m data.convert squad-schema --schemas schema.txt --output data/lifelong
    python -m data.convert squad-superni --folder CL_Benchmark/SuperNI --output data/lifelong
    python -m data.convert squad-classification --folder CL_Benchmark --output data/lifelong
    python -m data.convert squad-trace --folder TRACE-Benchmark --output data/lifelong

Text files are UTF-8, plain or ``.gz``. White space at the ends of a text is stripped; nothing else in it
changes unless the format's help says so. The output has one record per line and appears only once it is complete;
the same files and flags give the same bytes. The script prints what was kept and dropped, and why. An existing output
file is replaced, and a message says so.

A new format is one function in a module of ``data/converters``: it takes (args, report) and returns
``{split: iterator of records}``.
"""

import argparse
import importlib
import json
import os
import pkgutil
import sys

from versatile.data import converters
from versatile.data.converters.base import FORMATS, SPLITS, Report, limited
from versatile.utils import flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import module_command

for module in pkgutil.iter_modules(converters.__path__):
    importlib.import_module(f"versatile.data.converters.{module.name}")


def build_parser():
    """The argparse parser, with one sub-command per format."""
    parser = flags.Parser(
        prog=module_command("data.convert"),
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, chosen in FORMATS.items():
        # python -OO strips docstrings.
        description = chosen.read.__doc__ or name
        first_line = description.split("\n")[0]
        sub = formats.add_parser(name, help=first_line, description=description, allow_abbrev=False)
        chosen.flags(sub)
        output = "the directory of the tasks' files" if chosen.write else "the task json to write"
        sub.add_argument("--output", required=True, help=f"{output} (required)")
        for split in SPLITS:
            sub.add_argument(
                f"--{split}_limit",
                type=flags.positive,
                metavar="N",
                help=f"keep only the first N {split} records (default: all)",
            )
    return parser


def convert(argv=None):
    """Run one conversion; returns its `Report`. Any fault in the input raises `UserError`."""
    args = build_parser().parse_args(argv)
    report, chosen = Report(), FORMATS[args.format]
    write = chosen.write or write_task_json
    write(args, None, None)
    splits = chosen.read(args, report)
    try:
        write(args, splits, report)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror or error}",
            location=f"--output {args.output}",
            remedy="choose a directory you may write to",
        ) from error
    return report


def write_task_json(args, splits, report):
    """Write {split: records} as one json with one record per line. Without splits, only check --output."""
    output = args.output
    if not output.endswith(".json") or os.path.isdir(output):
        # This also prevents a mistyped flag from overwriting the data set itself.
        problem = "is a directory" if os.path.isdir(output) else "is not a .json name"
        raise UserError(
            problem,
            location=f"--output {output}",
            expected="the task json to write, e.g. data/NLG/data.json",
            remedy="name a .json file",
        )
    if splits is None:
        return
    with report.open_output(output) as file:
        for number, (split, records) in enumerate(splits.items()):
            file.write((",\n" if number else "{\n") + f"{json.dumps(split)}: [")
            for count, record in enumerate(limited(split, records, args, report)):
                file.write((",\n" if count else "\n") + json.dumps(record, ensure_ascii=False))
            file.write("\n]")
        file.write("\n}\n")


@exit_on_user_error
def main(argv=None):
    for line in convert(argv).lines():
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
