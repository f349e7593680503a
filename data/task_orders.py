"""Continual-learning benchmarks: their tasks, and the orders in which papers learn them.

An order's name can be used instead of its tasks wherever train_lifelong.py and evaluate_lifelong.py take tasks.
"""

# Super-NaturalInstructions as selected and ordered by SAPT (Zhao et al. 2024).
_SUPERNI_1 = (
    "task1572_samsum_summary", "task363_sst2_polarity_classification", "task1290_xsum_summarization",
    "task181_outcome_extraction", "task002_quoref_answer_generation", "task1510_evalution_relation_extraction",
    "task639_multi_woz_user_utterance_generation", "task1729_personachat_generate_next",
    "task073_commonsenseqa_answer_generation", "task1590_diplomacy_text_generation",
    "task748_glucose_reverse_cause_event_detection", "task511_reddit_tifu_long_text_summarization",
    "task591_sciq_answer_generation", "task1687_sentiment140_classification", "task875_emotion_classification",
)  # fmt: skip
_SUPERNI_2 = (
    "task748_glucose_reverse_cause_event_detection", "task073_commonsenseqa_answer_generation",
    "task1590_diplomacy_text_generation", "task639_multi_woz_user_utterance_generation", "task1572_samsum_summary",
    "task1687_sentiment140_classification", "task591_sciq_answer_generation", "task363_sst2_polarity_classification",
    "task1510_evalution_relation_extraction", "task1729_personachat_generate_next", "task181_outcome_extraction",
    "task511_reddit_tifu_long_text_summarization", "task002_quoref_answer_generation", "task1290_xsum_summarization",
    "task875_emotion_classification",
)  # fmt: skip
SUPERNI = tuple(sorted(_SUPERNI_1))

# The fifteen classification tasks of ProgressivePrompts (Razdaibiedina et al. 2023) in O-LoRA's files (Wang et al.
# 2023): {task: (its folder there, the data set on the hub that it was sampled from)}.
CLASSIFICATION = {
    "cl.yelp": ("SC/yelp", "Yelp/yelp_review_full"),
    "cl.amazon": ("SC/amazon", "amazon_review_full of Zhang et al. 2015"),
    "cl.mnli": ("NLI/MNLI", "nyu-mll/glue:mnli"),
    "cl.cb": ("NLI/CB", "aps/super_glue:cb"),
    "cl.copa": ("COPA/COPA", "aps/super_glue:copa"),
    "cl.qqp": ("QQP/QQP", "nyu-mll/glue:qqp"),
    "cl.rte": ("NLI/RTE", "aps/super_glue:rte"),
    "cl.imdb": ("SC/IMDB", "stanfordnlp/imdb"),
    "cl.sst2": ("SC/SST-2", "nyu-mll/glue:sst2"),
    "cl.dbpedia": ("TC/dbpedia", "fancyzhx/dbpedia_14"),
    "cl.agnews": ("TC/agnews", "fancyzhx/ag_news"),
    "cl.yahoo": ("TC/yahoo", "community-datasets/yahoo_answers_topics"),
    "cl.multirc": ("MultiRC/MultiRC", "aps/super_glue:multirc"),
    "cl.boolq": ("BoolQA/BoolQA", "aps/super_glue:boolq"),
    "cl.wic": ("WiC/WiC", "aps/super_glue:wic"),
}

# TRACE (Wang et al. 2023), in its own order: {task: its folder}.
TRACE = {
    "trace.c-stance": "C-STANCE", "trace.fomc": "FOMC", "trace.meetingbank": "MeetingBank", "trace.py150": "Py150",
    "trace.scienceqa": "ScienceQA", "trace.numglue-cm": "NumGLUE-cm", "trace.numglue-ds": "NumGLUE-ds",
    "trace.20minuten": "20Minuten",
}  # fmt: skip


def _classification(names):
    return tuple(f"cl.{name}" for name in names.split())


ORDERS = {
    "superni-order1": _SUPERNI_1,
    "superni-order2": _SUPERNI_2,
    "standard-order1": _classification("dbpedia amazon yahoo agnews"),
    "standard-order2": _classification("dbpedia amazon agnews yahoo"),
    "standard-order3": _classification("yahoo amazon agnews dbpedia"),
    "long-order4": _classification("yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic"),
    "long-order5": _classification("mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo"),
    "trace": tuple(TRACE),
}


def expand_orders(names):
    """Names of tasks, with the names of orders expanded to their tasks."""
    return [task for name in names for task in ORDERS.get(name, (name,))]


def order_name(tasks):
    """The name of the order that consists of exactly these tasks, or None."""
    return next((name for name, order in ORDERS.items() if list(order) == list(tasks)), None)
