"""cnn_dailymail: news articles and their highlights, from csv files or .story files."""

import hashlib
import os
import re

from versatile.data.converters.base import (
    SPLITS,
    data_format,
    given_splits,
    held_out_flag,
    held_out_sizes,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
)
from versatile.data.files import csv_rows, text_lines
from versatile.utils.errors import UserError

_STORY = ".story"


def _flags(parser):
    split_flags(parser, 1, "csv file with the columns article and highlights")
    parser.add_argument(
        "--stories",
        nargs="+",
        metavar="FOLDER",
        help="instead of csv files: the folders of the .story files; needs the lists (default: none)",
    )
    for split in SPLITS:
        parser.add_argument(
            f"--{split}_list",
            metavar="FILE",
            help=f"the {split} stories, one file name or url per line (default: none, and no {split} split)",
        )
    held_out_flag(parser, "valid", "N articles at the end of the training file (before those for the test)")
    held_out_flag(parser, "test", "the last N articles of the training file")
    skip_bad_flag(parser, "rows and stories")


@data_format("cnn_dailymail", _flags)
def cnn_dailymail(args, report):
    """CNN/DailyMail: csv files (id, article, highlights), or .story files with lists of names or urls.

    The article is put on one line, the highlights on one line each; blank lines, and white space next to line breaks,
    are removed. A line of a list names a file in the folders, or is a url whose sha1 in hexadecimal is the file's name.
    Records without an article or highlights are dropped and counted. The chunked .bin files of TensorFlow examples and
    parquet files cannot be read: save them as csv.
    """
    lists = [f"--{split}_list" for split in SPLITS if getattr(args, f"{split}_list")]
    files = [f"--{split}" for split in SPLITS if getattr(args, split)]
    if files and (args.stories or lists):
        raise UserError(
            f"cannot be combined with --stories and lists; also given: {' '.join(lists) or '--stories'}",
            location=" ".join(files),
            expected="csv files, or --stories and lists",
            remedy="give one or the other",
        )
    if lists and not args.stories:
        raise UserError(
            "needs --stories",
            location=" ".join(lists),
            expected="the folders of the stories",
            remedy="add --stories FOLDER",
        )
    suffix = "_list" if args.stories else ""
    split_sources = given_splits(args, suffix)
    for folder in args.stories or ():
        if not os.path.isdir(folder):
            raise UserError("is not a folder", location=f"--stories {folder}", remedy="check the path for a typo")

    def read(path):
        raws = _listed_stories(path, args.stories) if args.stories else _rows(path)
        return parsed(raws, _record, args.skip_bad)

    sizes = held_out_sizes(args, split_sources, suffix)
    return split_records(split_sources, sizes, read, report, key=lambda record: record["src"])


def _record(raw, location, drops):
    article, highlights = raw
    if not article or not highlights:
        drops["without highlights" if article else "without an article"] += 1
        return None
    if any("\0" in line for line in (*article, *highlights)):
        raise UserError("holds a null byte", location=location, expected="text")
    return {"src": " ".join(article), "tgt": "\n".join(highlights)}


def _lines(text):
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


def _rows(path):
    """Yield (location, (lines of the article, highlights)) of each row of a csv file; a faulty one is a `UserError`."""
    columns = ("article", "highlights")
    for location, row in csv_rows(path, columns, "the usual files have id, article and highlights"):
        yield location, row if isinstance(row, UserError) else tuple(_lines(row[name]) for name in columns)


def _listed_stories(path, folders):
    """Yield (location, (lines of the article, highlights)) for every line of a list, or a `UserError` as the pair."""
    for number, line in text_lines(path):
        line = line.strip()
        if not line:
            continue
        name = line.removesuffix(_STORY)
        if "://" in line:
            name = hashlib.sha1(line.encode()).hexdigest()
        location = f"{path}:{number}"
        if os.path.basename(name) != name:
            expected = "a story file's name, or a url whose sha1 is one"
            yield location, UserError(f"{line[:200]!r} is a path", location=location, expected=expected)
            continue
        files = (os.path.join(folder, name + _STORY) for folder in folders)
        story = next((file for file in files if os.path.isfile(file)), None)
        if not story:
            yield (
                location,
                UserError(
                    f"no file {name}{_STORY} in {', '.join(folders)}, for {line[:200]!r}",
                    location=location,
                    expected="a story file's name, or a url whose sha1 is one",
                ),
            )
            continue
        yield story, _story(story)


def _story(path):
    """(lines of the article, highlights) of a .story file, or the `UserError` from reading it."""
    article, highlights = [], []
    lines = article
    try:
        for _, text in text_lines(path):
            if text.strip() == "@highlight":
                lines = []
                highlights.append(lines)
            else:
                lines += _lines(text)
    except UserError as error:
        return error
    return article, [" ".join(lines) for lines in highlights if lines]
