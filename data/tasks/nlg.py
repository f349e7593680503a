"""nlg: a restaurant's meaning representation -> a sentence about it (E2E NLG challenge).

Record: {"src": {slot: value, …}, "tgt": text, "refs": [text, …]}; `refs` is for scoring and may be absent.
"""

import re

from versatile.data.files import mapping_field, text_field, texts_field
from versatile.data.question_task import LifelongTask
from versatile.data.task import Example, ReadOptions, Span, Task, register
from versatile.utils.errors import UserError

SLOTS = {
    "name": "<name>",
    "eatType": "<eatType>",
    "familyFriendly": "<familyFriendly>",
    "priceRange": "<priceRange>",
    "food": "<food>",
    "near": "<near>",
    "area": "<area>",
    "customer rating": "<customerRating>",
}
TYPED = re.compile(r"([^,\[\]]+)\[([^\[\]]*)\]")


@register
class NLG(Task):
    name = "nlg"
    aliases = ("e2e", "e2e_nlg")
    question_answer = (
        LifelongTask("e2enlg", "rouge", "avg_rouge", has_dev=False),
        LifelongTask("e2enlg2", "rouge", "avg_rouge", has_dev=False),
    )
    summary = "meaning representation -> restaurant description (E2E)"
    markers = ("<bos_nlg>", "<eos_nlg>", *SLOTS.values(), "<response>")
    bos, eos = "<bos_nlg>", "<eos_nlg>"
    dataset_path = "data/NLG/data.json"
    merge_references = True
    # The challenge's own BLEU is on a 0-1 scale; in a summary it would appear next to scores on a 0-100 scale.
    headline = "sacreBLEU"
    sample = "name[The Vaults], eatType[pub], food[English], near[Café Adriatic]"
    published = {
        "finetune": dict(lr=5e-5, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4),
        "adapter": dict(lr=5e-3, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4, adapter_bottleneck=10),
    }

    def examples(self, record, location, options=ReadOptions()):
        slots = mapping_field(record, "src", location)
        gold = text_field(record, "tgt", location)
        references = texts_field(record, "refs", location) if "refs" in record else [gold]
        yield self.assemble(slots, gold, references, location)

    def assemble(self, slots, target="", references=(), location=""):
        """An `Example` of {slot: value}."""
        unknown = [slot for slot in slots if slot not in SLOTS]
        if unknown:
            raise UserError(
                f"unknown slot {unknown[0]!r}",
                location=location,
                expected="one of " + ", ".join(map(repr, SLOTS)),
                remedy="rename the slot, or give it a marker in data/tasks/nlg.py",
            )
        context = [Span(SLOTS[slot], value) for slot, value in slots.items()]
        source = ", ".join(f"{slot}[{value}]" for slot, value in slots.items())
        return Example(context, Span("<response>", target), source, list(references), location)

    def typed(self, text, session):
        slots = {slot.strip(): value.strip() for slot, value in TYPED.findall(text)}
        if not slots:
            raise UserError(f"no slot in {text!r}", expected=self.sample)
        return self.assemble(slots, location="input"), session

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics

        scores, notes = metrics.e2e(hypotheses, references)
        return scores | {"sacreBLEU": metrics.bleu(hypotheses, references)}, notes
