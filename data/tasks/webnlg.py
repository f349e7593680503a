"""webnlg: triples of a knowledge graph -> a text that verbalises them (WebNLG).

Record: {"src": "subject | predicate | object && …", "tgt": text, "refs": [text, …]}; `refs` is for scoring and may
be absent.
"""

from dataclasses import replace

from versatile.data.files import texts_field
from versatile.data.task import ReadOptions, register
from versatile.data.text_pair import TextPair


@register
class WebNLG(TextPair):
    name = "webnlg"
    summary = "triples -> a text that says them (WebNLG)"
    markers = ("<bos_webnlg>", "<eos_webnlg>", "<triples>", "<verbalization>")
    bos, eos = "<bos_webnlg>", "<eos_webnlg>"
    dataset_path = "data/WebNLG/data.json"
    limits = {"<triples>": 300}
    min_tokens = 1
    merge_references = True
    sample = "Alan_Bean | nationality | United_States && Alan_Bean | occupation | Test_pilot"
    # None are published for this task; these are nlg's, with a larger adapter (and a lower rate) for open vocabulary.
    published = {
        "finetune": dict(lr=5e-5, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4),
        "adapter": dict(lr=1e-3, n_epochs=10, train_batch_size=8, gradient_accumulation_steps=4, adapter_bottleneck=64),
    }

    def examples(self, record, location, options=ReadOptions()):
        for example in super().examples(record, location, options):
            yield replace(example, references=texts_field(record, "refs", location)) if "refs" in record else example

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics

        return {"BLEU": metrics.bleu(hypotheses, references), "chrF": metrics.chrf(hypotheses, references)}, []
