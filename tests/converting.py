"""Shared by the converters' tests: files in, a conversion, its task json or its error out."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from versatile.data import convert
from versatile.utils.errors import UserError

NOISE = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
# Texts as a record keeps them: no tab, no line feed, nothing at the ends that strip() would remove.
TEXT = (
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\t\n\r|"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda text: text and text != "__SILENCE__")
)
SETTINGS = settings(deadline=None, max_examples=40)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def run(tmp_path, *argv):
    """(the task json, the report as text)"""
    output = tmp_path / "out" / "data.json"
    report = convert.convert([*map(str, argv), "--output", str(output)])
    return json.loads(output.read_text(encoding="utf-8")), "\n".join(report.lines())


def sizes(splits):
    return {split: len(records) for split, records in splits.items()}


def error(tmp_path, *argv):
    with pytest.raises(UserError) as caught:
        run(tmp_path, *argv)
    assert caught.value.location
    assert caught.value.remedy
    assert not (tmp_path / "out" / "data.json").exists()
    return str(caught.value)


def attempt(argv, files):
    """Write the files into a fresh folder and convert; "{}" in argv is the folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        output = Path(folder) / "o.json"
        try:
            convert.convert([part.format(folder) for part in argv] + ["--output", str(output)])
        except UserError as raised:
            assert raised.location
            assert not output.exists()
            return None
        return json.loads(output.read_text(encoding="utf-8"))


def damaged(content, data):
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(NOISE)
    return bytes(content)
