"""mt: a sentence in one language -> the same in another (IWSLT, Multi30k, any parallel text).

Record: {"src": text, "tgt": text}.
"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import register
from versatile.data.text_pair import TextPair


@register
class MT(TextPair):
    name = "mt"
    aliases = ("iwslt", "iwslt-en-de")
    question_answer = LifelongTask("iwslt.en.de", "bleu", "bleu")
    summary = "sentence -> its translation (IWSLT, Multi30k)"
    markers = ("<bos_mt>", "<eos_mt>", "<source_mt>", "<target_mt>")
    bos, eos = "<bos_mt>", "<eos_mt>"
    dataset_path = "data/NMT/data_en_ge.json"
    limits = {"<source_mt>": 100, "<target_mt>": 100}
    sample = "A man is reading a book in the park."
    published = {
        "finetune": dict(lr=6.25e-5, n_epochs=8, train_batch_size=8, gradient_accumulation_steps=4),
        "adapter": dict(lr=5e-4, n_epochs=8, train_batch_size=8, gradient_accumulation_steps=4, adapter_bottleneck=300),
    }

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics, original_metrics

        scores = {"BLEU": metrics.bleu(hypotheses, references), "chrF": metrics.chrf(hypotheses, references)}
        return scores | original_metrics.cleaned(hypotheses, references), []
