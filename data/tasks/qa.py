"""qa: a document and the questions so far -> the answer to the last one (CoQA, SQuAD).

Record: {"id": text, "document": [text], "utterances": [{"turn_id": n, "history": [question, answer, …, question],
"candidates": [text, …, answer], "answers": [text, …]}]}; `answers` is for scoring and may be absent.
"""

from versatile.data.conversation import Conversation
from versatile.data.files import texts_field
from versatile.data.task import register
from versatile.utils.errors import UserError, brief


@register
class QA(Conversation):
    name = "qa"
    aliases = ("coqa",)
    summary = "document and questions so far -> answer (CoQA, SQuAD)"
    markers = ("<bos_qa>", "<eos_qa>", "<question>", "<answer>", "<document>")
    bos, eos, bos_type = "<bos_qa>", "<eos_qa>", "<document>"
    first, field, speakers = "<document>", "document", ("<question>", "<answer>")
    dataset_path = "data/CoQA/data.json"
    limits = {"<document>": 400}
    # The official test set is hidden.
    scored_split = "valid"
    max_history = 1
    headline = "F1"
    sample = "document: The river is 96 miles long. It rises in the hills."
    published = {
        "finetune": dict(lr=6.25e-5, n_epochs=3, train_batch_size=2, gradient_accumulation_steps=8),
        "adapter": dict(lr=5e-4, n_epochs=5, train_batch_size=2, gradient_accumulation_steps=8, adapter_bottleneck=300),
    }

    def about(self, record, utterance, gold, location):
        story, turn = record.get("id", ""), utterance.get("turn_id", 0)
        for name, value, kind in (("id", story, (str, int)), ("turn_id", turn, int)):
            if not isinstance(value, kind):
                raise UserError(f"{name!r} is {brief(value)}", location=location, expected="the id in the data set")
        answers = texts_field(utterance, "answers", location) if "answers" in utterance else [gold]
        return answers or [gold], {"id": story, "turn_id": turn}

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics

        return metrics.coqa(hypotheses, references), []

    def files(self, hypotheses, details):
        return {"output.txt": [dict(d, answer=text) for d, text in zip(details, hypotheses)]}
