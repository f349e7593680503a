"""Conversations as examples: the text before them (a persona, a document), the turns, and the reply to learn.

    <bos> <first> text … | <speaker> turn … | … | <speaker> reply … <eos>

Record: {<first field>: [text, …], "utterances": [{"history": [turn, …], "candidates": [text, …, reply]}]}; each
utterance is one example.
"""

from versatile.data.files import records_field, texts_field
from versatile.data.task import Example, ReadOptions, Span, Task
from versatile.utils.errors import UserError


class Conversation(Task):
    """Base class of tasks that generate a reply in a conversation.

    Attributes:
        first: the marker of the text before the turns.
        field: the record's key for the list of texts that go there.
        speakers: the markers of the partner and of the speaker whose replies are learned.
    """

    first: str
    field: str
    speakers: tuple[str, str]

    def examples(self, record, location, options=ReadOptions()):
        texts = texts_field(record, self.field, location)
        utterances = records_field(record, "utterances", location)
        if not utterances:
            raise UserError(
                "'utterances' is empty", location=location, expected="at least one, with history and candidates"
            )
        for number, utterance in enumerate(utterances):
            turn_location = f"{location}.utterances[{number}]"
            history = texts_field(utterance, "history", turn_location)
            gold = last(utterance, "candidates", turn_location)
            target = last(utterance, "distillated_candidates", turn_location) if options.distilled else gold
            if not history:
                raise UserError("'history' is empty", location=turn_location, expected="the turns before the reply")
            references, details = self.about(record, utterance, gold, turn_location)
            history = history[-(2 * options.max_history + 1) :]
            yield self.assemble(texts, history, target, references, turn_location, details)
            if not options.decoding:
                # In training the sentences rotate, as they did for the released checkpoints.
                texts = texts[-1:] + texts[:-1]

    def about(self, record, utterance, gold, location):
        """([references], details) of an utterance."""
        return [gold], {}

    def assemble(self, texts, history, target="", references=(), location="", details=None):
        """An `Example` made of the texts before the turns, the turns so far and the reply."""
        front = " ".join(t for text in texts if (t := text.strip()))
        turns = []
        for number, text in enumerate([*history, target]):
            # Quirk kept because released checkpoints were trained with it: a turn's marker counts from the end (the
            # reply is always the second speaker's), its type from the start; for an even history the two disagree.
            marker = self.speakers[(len(history) - number + 1) % 2]
            turns.append(Span(marker, text, self.speakers[number % 2], turn=True))
        source = " | ".join([front, *(turn.strip() for turn in history)])
        return Example(
            [Span(self.first, front), *turns[:-1]], turns[-1], source, list(references), location, details or {}
        )

    def distil(self, record, outputs):
        utterances = [{**u, "distillated_candidates": [text]} for u, text in zip(record["utterances"], outputs)]
        return {**record, "utterances": utterances}

    def typed(self, text, session):
        name = self.first.strip("<>")
        head, colon, rest = text.partition(":")
        if colon and head.strip().lower() == name:
            return None, self.opened(rest.strip(), session)
        if not session.get("texts"):
            raise UserError(f"no {name} yet", expected=f"{name}: …", remedy=f"type a line that begins with '{name}:'")
        session = {**session, "history": [*session.get("history", []), text]}
        history = session["history"][-(2 * session.get("max_history", self.max_history) + 1) :]
        return self.assemble(session["texts"], history, location="input"), session

    def opened(self, text, session):
        """The session after a line that sets the text before the turns, which starts a new conversation."""
        return {**session, "texts": [text], "history": []}

    def answered(self, text, session):
        return {**session, "history": [*session["history"], text]}


def last(utterance, name, location):
    """The last text of a list: the correct candidate comes last."""
    texts = texts_field(utterance, name, location)
    if not texts:
        raise UserError(f"{name!r} is empty", location=location, expected="at least one text, the reply to learn last")
    return texts[-1]
