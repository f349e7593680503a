"""summarization: an article -> its highlights, one sentence per line (CNN/DailyMail).

Record: {"src": text, "tgt": text}.
"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import register
from versatile.data.text_pair import TextPair


@register
class Summarization(TextPair):
    name = "summarization"
    aliases = ("cnn-dailymail", "cnndm")
    question_answer = LifelongTask("cnn_dailymail", "rouge", "avg_rouge")
    summary = "article -> summary (CNN/DailyMail)"
    markers = ("<bos_sm>", "<eos_sm>", "<source_sm>", "<target_sm>")
    bos, eos = "<bos_sm>", "<eos_sm>"
    dataset_path = "data/CNNDAILY/data.json"
    limits = {"<source_sm>": 400, "<target_sm>": 130}
    headline = "rougeLsum"
    sample = "The bridge was closed on Monday. Engineers found cracks in two of its pillars. Repairs will take a month."
    published = {
        "finetune": dict(lr=8e-5, n_epochs=10, train_batch_size=4, gradient_accumulation_steps=8),
        "adapter": dict(lr=5e-4, n_epochs=10, train_batch_size=4, gradient_accumulation_steps=8,
                        adapter_bottleneck=100),
    }  # fmt: skip

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics, original_metrics

        scores = metrics.rouge_summary(hypotheses, references)
        return scores | original_metrics.cleaned(hypotheses, references), []
