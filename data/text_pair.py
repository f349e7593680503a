"""A text in, a text out: what translation and summarization share.

Record: {"src": text, "tgt": text}.
"""

from versatile.data.files import text_field
from versatile.data.task import Example, Reading, Span, Task


class TextPair(Task):
    """Base of the tasks that turn one text into another; `markers` are bos, eos, source, target."""

    min_tokens = 2

    def examples(self, record, place, how=Reading()):
        source, gold = text_field(record, "src", place), text_field(record, "tgt", place)
        target = text_field(record, "distillated_tgt", place) if how.distilled else gold
        yield self.assemble(source, target, [gold], place)

    def assemble(self, source, target="", references=(), place=""):
        """An `Example` of two texts."""
        context = [Span(self.markers[2], source)]
        return Example(context, Span(self.markers[3], target), source, list(references), place)

    def typed(self, text, session):
        return self.assemble(text, place="input"), session
