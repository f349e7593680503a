"""Text in, text out: the common part of translation and summarization.

Record: {"src": text, "tgt": text}.
"""

from versatile.data.files import text_field
from versatile.data.task import Example, ReadOptions, Span, Task


class TextPair(Task):
    """Base class of tasks that turn one text into another; `markers` are bos, eos, source, target."""

    min_tokens = 2

    def examples(self, record, location, options=ReadOptions()):
        source, gold = text_field(record, "src", location), text_field(record, "tgt", location)
        yield self.assemble(source, gold, [gold], location)

    def assemble(self, source, target="", references=(), location=""):
        """An `Example` made of two texts."""
        context = [Span(self.markers[2], source)]
        return Example(context, Span(self.markers[3], target), source, list(references), location)

    def typed(self, text, session):
        return self.assemble(text, location="input"), session
