"""nlg: a restaurant's meaning representation -> a sentence about it (E2E NLG challenge).

Record: {"src": {slot: value, …}, "tgt": text, "refs": [text, …]}; `refs` is for scoring and may be absent.
"""

from data.files import mapping_field, text_field, texts_field
from data.task import Example, Span, Task, register
from utils.errors import UserError

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


@register
class NLG(Task):
    name = "nlg"
    summary = "meaning representation -> restaurant description (E2E)"
    markers = ("<bos_nlg>", "<eos_nlg>", *SLOTS.values(), "<response>")
    bos, eos = "<bos_nlg>", "<eos_nlg>"
    dataset_path = "data/NLG/data.json"
    merge_references = True
    published = {
        "finetune": dict(lr=5e-5, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4),
        "adapter": dict(lr=5e-3, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4, adapter_bottleneck=10),
    }

    def example(self, record, place, distilled=False):
        slots = mapping_field(record, "src", place)
        unknown = [slot for slot in slots if slot not in SLOTS]
        if unknown:
            raise UserError(
                f"unknown slot {unknown[0]!r}",
                place=place,
                expected="one of " + ", ".join(map(repr, SLOTS)),
                remedy="rename the slot, or give it a marker in data/tasks/nlg.py",
            )
        target = text_field(record, "distillated_tgt" if distilled else "tgt", place)
        return Example(
            context=[Span(SLOTS[slot], value) for slot, value in slots.items()],
            target=Span("<response>", target),
            source=", ".join(f"{slot}[{value}]" for slot, value in slots.items()),
            references=texts_field(record, "refs", place) if "refs" in record else [target],
            place=place,
        )

    def score(self, hypotheses, references):
        from utils import metrics

        scores, notes = metrics.e2e(hypotheses, references)
        return scores | {"sacreBLEU": metrics.bleu(hypotheses, references)}, notes
