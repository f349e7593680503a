"""Safe reading of published xml files as a stream of events."""

import itertools
from xml.parsers import expat

from versatile.data.files import open_bytes
from versatile.utils.errors import UserError

_CUT = expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]


def allow_cut_flag(parser, what):
    """Add --allow_cut, for `xml_events`."""
    parser.add_argument(
        "--allow_cut",
        action="store_true",
        help=f"use the complete {what} of a truncated xml file (default: stop)",
    )


def xml_events(path, unit, cut=None):
    """Yield ("start", tag, {attribute: value}, line), ("text", text, None, line) and ("end", tag, None, line).

    One stretch of text may come in several pieces.

    Args:
        path: the file, plain or ``.gz``.
        unit: the tag that contains the data; a file that ends early after one of these counts as truncated.
        cut: a list to which a note about a truncated file is added, instead of raising an error.

    Raises:
        UserError: while iterating. The file cannot be read, is not well-formed, is truncated, or declares a
            document type.
    """
    events, begun = [], False

    def start(tag, attributes):
        nonlocal begun
        begun = begun or tag == unit
        events.append(("start", tag, attributes, parser.CurrentLineNumber))

    def doctype(*_):
        # Entities defined in a document can make it expand without bound; these files define none.
        raise UserError(
            "declares a document type",
            location=f"{path}:{parser.CurrentLineNumber}",
            expected="the xml as published, without <!DOCTYPE …>",
            remedy="remove that line",
        )

    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, doctype
    parser.EndElementHandler = lambda tag: events.append(("end", tag, None, parser.CurrentLineNumber))
    parser.CharacterDataHandler = lambda text: events.append(("text", text, None, parser.CurrentLineNumber))
    with open_bytes(path) as file:
        for block in itertools.chain(iter(lambda: file.read(1 << 16), b""), (b"",)):
            try:
                parser.Parse(block, not block)
            except expat.ExpatError as error:
                if not block and error.code == _CUT and begun and cut is not None:
                    cut.append(f"note: {path} ends before its closing tags")
                    return
                raise _not_xml(path, error, not block and error.code == _CUT and begun) from error
            yield from events
            events.clear()


def _not_xml(path, error, cut):
    location = f"{path}:{error.lineno}"
    if cut:
        remedy = "copy it again, or use what there is with --allow_cut"
        return UserError("ends before its closing tags", location=location, expected="a whole xml file", remedy=remedy)
    reason = f"{expat.ErrorString(error.code)} (column {error.offset + 1})"
    return UserError(
        f"is not valid xml: {reason}",
        location=location,
        expected="a whole, well-formed xml file",
        remedy="copy the file again, or correct it there",
    )
