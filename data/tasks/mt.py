"""mt: a sentence in one language -> the same in another (IWSLT, Multi30k, any parallel text).

Record: {"src": text, "tgt": text}.
"""

from data.files import text_field
from data.task import Example, Span, Task, register


@register
class MT(Task):
    name = "mt"
    summary = "sentence -> its translation (IWSLT, Multi30k)"
    markers = ("<bos_mt>", "<eos_mt>", "<source_mt>", "<target_mt>")
    bos, eos = "<bos_mt>", "<eos_mt>"
    dataset_path = "data/NMT/data_en_ge.json"
    limits = {"<source_mt>": 100, "<target_mt>": 100}
    min_tokens = 2
    published = {
        "finetune": dict(lr=6.25e-5, n_epochs=8, train_batch_size=8, gradient_accumulation_steps=4),
        "adapter": dict(lr=5e-4, n_epochs=8, train_batch_size=8, gradient_accumulation_steps=4, adapter_bottleneck=300),
    }

    def example(self, record, place, distilled=False):
        source = text_field(record, "src", place)
        gold = text_field(record, "tgt", place)
        target = text_field(record, "distillated_tgt", place) if distilled else gold
        return Example([Span("<source_mt>", source)], Span("<target_mt>", target), source, [gold], place)

    def score(self, hypotheses, references):
        from utils import metrics, original_metrics

        scores = {"BLEU": metrics.bleu(hypotheses, references), "chrF": metrics.chrf(hypotheses, references)}
        cleaned = [original_metrics.clean_up(t) for t in hypotheses]
        gold = [[original_metrics.clean_up(r) for r in refs] for refs in references]
        return scores | original_metrics.original(cleaned, gold), []
