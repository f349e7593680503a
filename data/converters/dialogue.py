"""personachat: conversations with a persona, from ParlAI's text files or Hugging Face's json."""

import re
from functools import partial

from versatile.data.converters.base import (
    SPLITS,
    data_format,
    given_splits,
    json_records,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    tallied,
    usable,
)
from versatile.data.files import records_field, text_lines, texts_field
from versatile.data.json_files import split_names
from versatile.utils import flags
from versatile.utils.errors import UserError

SILENCE = "__SILENCE__"
_NUMBERED = re.compile(r"([0-9]{1,9}) (.*)", re.DOTALL)
_PERSONA = re.compile(r"(your|partner's) persona:(.*)", re.DOTALL)
_LAYOUT = "'<n> partner TAB reply', or with candidates '<n> partner TAB reply TAB TAB one|two|…'"
_JSON = 'the json {"train": [{"personality": [..], "utterances": [..]}, …], "valid": [..]}'


def _flags(parser):
    split_flags(parser, 1, "text file in the ConvAI2 layout, e.g. train_self_original.txt")
    parser.add_argument(
        "--json", metavar="FILE", help="personachat_self_original.json, instead of the three files (default: none)"
    )
    parser.add_argument(
        "--keep_candidates",
        type=flags.not_negative,
        default=0,
        metavar="N",
        help="keep the last N wrong candidates before the gold one (default: 0)",
    )
    skip_bad_flag(parser, "dialogues")


@data_format("personachat", _flags)
def personachat(args, report):
    """PersonaChat (ConvAI2): text files, with or without candidates, or personachat_self_original.json.

    One record per dialogue. Lines with the partner's persona are left out and counted. If one side of an
    exchange is __SILENCE__, the whole exchange (partner and reply) is left out, also from the history of later turns,
    and counted, so that every history alternates partner, reply, …, partner.
    """
    if not args.json:
        files, dialogues, parse = given_splits(args), _text_dialogues, _from_text
    elif any(getattr(args, split) for split in SPLITS):
        raise UserError("cannot be combined with --train, --valid and --test", location="--json",
                        remedy="give one or the other")  # fmt: skip
    else:
        names = split_names(args.json)
        files = {split: split for split in SPLITS if split in names or (split == "valid" and "val" in names)}
        dialogues, parse = partial(json_records, args.json, expected=_JSON), _from_json
        if not files:
            raise UserError(
                "has no train, valid or test list", location=args.json, expected=_JSON, remedy="check the file"
            )

    def read(value):
        return parsed(dialogues(value), partial(parse, keep=args.keep_candidates), args.skip_bad)

    return tallied(split_records(files, {}, read, report), report, "turns", lambda r: len(r["utterances"]))


def _record(personality, utterances, drops):
    if utterances:
        return {"personality": personality, "utterances": utterances}
    drops["dialogues left without a turn"] += 1
    return None


# --- text files ------------------------------------------------------------------------------------------


def _text_dialogues(path):
    """Yield (location, [(location, line)]) for each dialogue; the line numbered 1 begins one."""
    lines = []
    for number, text in text_lines(path):
        if not text.strip():
            continue
        if text.startswith("1 ") and lines:
            yield lines[0][0], lines
            lines = []
        lines.append((f"{path}:{number}", text))
    if lines:
        yield lines[0][0], lines


def _from_text(lines, location, drops, keep):
    personality, history, utterances, began = [], [], [], False
    for number, (line_location, line) in enumerate(lines, start=1):
        match = _NUMBERED.match(line)
        if not match or int(match[1]) != number:
            raise UserError(
                f"begins with {line[:20].strip()!r}",
                location=line_location,
                expected=f"line {number} of the dialogue, beginning with '{number} ', or '1 ' for the next one",
            )
        persona = _PERSONA.match(match[2]) if "\t" not in match[2] else None
        if persona and persona[1] == "partner's":
            drops["lines with the partner's persona"] += 1
        elif persona:
            if began:
                raise UserError("is a persona line after the first turn", location=line_location, expected=_LAYOUT)
            personality.append(usable(persona[2], "the persona sentence", line_location))
        else:
            began = True
            partner, reply, wrong = _turn(match[2], line_location)
            if SILENCE in (partner, reply):
                drops[f"exchanges with {SILENCE}"] += 1
                continue
            candidates = [*wrong[max(0, len(wrong) - keep) :], reply]
            utterances.append({"history": [*history, partner], "candidates": candidates})
            history += [partner, reply]
    return _record(personality, utterances, drops)


def _turn(text, location):
    """(partner, reply, wrong candidates) of a line without its number."""
    fields = text.split("\t")
    if not 2 <= len(fields) <= 4:
        raise UserError(f"{len(fields) - 1} tabs", location=location, expected=_LAYOUT)
    partner, reply = usable(fields[0], "the partner's turn", location), usable(fields[1], "the reply", location)
    if len(fields) < 4 or not fields[3].strip():
        return partner, reply, []
    candidates = [candidate.strip() for candidate in fields[3].split("|")]
    if reply not in candidates:
        raise UserError("the reply is not among the candidates", location=location, expected=_LAYOUT)
    return partner, reply, _wrong(candidates, reply)


def _wrong(candidates, gold):
    return [candidate.strip() for candidate in candidates if candidate.strip() not in ("", gold)]


# --- json ------------------------------------------------------------------------------------------------


def _from_json(dialogue, location, drops, keep):
    personality = [
        usable(text, "a persona sentence", location) for text in texts_field(dialogue, "personality", location)
    ]
    utterances = []
    for index, utterance in enumerate(records_field(dialogue, "utterances", location)):
        turn_location = f"{location}.utterances[{index}]"
        texts = texts_field(utterance, "history", turn_location)
        history = [usable(text, "a turn of the history", turn_location) for text in texts]
        candidates = texts_field(utterance, "candidates", turn_location)
        if not history or not candidates:
            raise UserError(
                f"{'history' if not history else 'candidates'!r} is empty",
                location=turn_location,
                expected="the turns so far, and at least the gold reply, which comes last",
            )
        gold = usable(candidates[-1], "the gold reply", turn_location)
        if SILENCE in (history[-1], gold):
            drops[f"exchanges with {SILENCE}"] += 1
            continue
        wrong = _wrong(candidates[:-1], gold)
        candidates = [*wrong[max(0, len(wrong) - keep) :], gold]
        utterances.append({"history": _without_silence(history), "candidates": candidates})
    return _record(personality, utterances, drops)


def _without_silence(history):
    """The history without exchanges in which one side is silent; it ends with the partner's turn."""
    odd = (len(history) - 1) % 2  # a reply whose partner's turn is missing
    exchanges = [history[:odd], *(history[at : at + 2] for at in range(odd, len(history), 2))]
    return [text for exchange in exchanges if SILENCE not in exchange for text in exchange]
