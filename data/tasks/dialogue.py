"""dialogue: a persona and the turns so far -> the next reply (PersonaChat).

Record: {"personality": [sentence, …], "utterances": [{"history": [turn, …], "candidates": [text, …, reply]}]}.
"""

from versatile.data.conversation import Conversation
from versatile.data.task import register


@register
class Dialogue(Conversation):
    name = "dialogue"
    aliases = ("personachat",)
    summary = "persona and turns so far -> next reply (PersonaChat)"
    markers = ("<bos_dial>", "<eos_dial>", "<speaker1>", "<speaker2>", "<persona>")
    bos, eos, bos_type = "<bos_dial>", "<eos_dial>", "<persona>"
    first, field, speakers = "<persona>", "personality", ("<speaker1>", "<speaker2>")
    dataset_path = "data/persona/data.json"
    # The official test set is hidden.
    scored_split = "valid"
    max_history = 2
    sample = "persona: i am a baker. i have two cats."
    published = {
        "finetune": dict(lr=6.25e-5, n_epochs=3, train_batch_size=8, gradient_accumulation_steps=2),
        "adapter": dict(lr=1e-3, n_epochs=3, train_batch_size=8, gradient_accumulation_steps=2, adapter_bottleneck=100),
    }

    def about(self, record, utterance, gold, location):
        return [gold], {"persona": record["personality"]}

    def opened(self, text, session):
        # A persona is typed sentence by sentence, on several lines.
        if session.get("history"):
            session = {**session, "texts": []}
        return {**session, "texts": [*session.get("texts", []), text], "history": []}

    def score(self, hypotheses, references, details=None):
        from versatile.utils import metrics, original_metrics

        scores = {"BLEU": metrics.bleu(hypotheses, references)}
        scores |= {f"distinct-{n}": metrics.distinct(hypotheses, n) for n in (1, 2)}
        if details:
            scores["persona_coverage"] = metrics.persona_coverage(hypotheses, [d["persona"] for d in details])
        names = ("original_BLEU", "original_BLEU_lc")
        original = original_metrics.cleaned(hypotheses, references)
        return scores | {name: original[name] for name in names}, []

    def files(self, hypotheses, details):
        return {"persona.txt": "".join("\t".join(d["persona"]).replace("\n", " ") + "\n" for d in details)}
