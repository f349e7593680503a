"""python -m pytest tests/test_metrics.py"""

import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import GOLDEN, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.utils import caption_metrics as caption
from versatile.utils import metrics
from versatile.utils import original_metrics as original
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score

HYPOTHESES = GOLDEN / "metrics" / "e2e_hypotheses.txt"
REFERENCES = GOLDEN / "metrics" / "e2e_references.txt"

needs_java = pytest.mark.skipif(
    not shutil.which("java") or find_spec("pycocoevalcap") is None,
    reason="METEOR 1.5 needs pycocoevalcap==1.2 and a Java runtime (java on PATH)",
)

words = st.lists(st.sampled_from(["the", "river", "Pub's", "kid-friendly", "£20", ",", ".", "a"]), max_size=8)
texts = words.map(" ".join)
corpora = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def e2e_example():
    return metrics.read_lines(HYPOTHESES), metrics.read_references(REFERENCES)


@pytest.fixture(scope="module")
def e2e_golden():
    return json.loads((GOLDEN / "metrics" / "e2e_scores.json").read_text())


@pytest.fixture(scope="module")
def vlm_golden():
    return json.loads((GOLDEN / "vglm" / "eval_metrics.json").read_text())


@pytest.fixture
def no_meteor(monkeypatch):
    """Neither the Java METEOR nor nltk's WordNet."""

    def missing(*_):
        raise caption.MeteorError("it is hidden from this test")

    monkeypatch.setattr(caption, "meteor_java", missing)
    monkeypatch.setattr(caption, "meteor_nltk", missing)


def tokenized(hypotheses, references):
    return metrics._ptb(hypotheses, references)


def pure_scores(hypotheses, references):
    """Every score that needs no Java, as plain numbers."""
    bleu, nist = caption.bleu_nist(hypotheses, references)
    tokens = tokenized(hypotheses, references)
    return [bleu, nist, caption.rouge_l(*tokens), caption.cider(*tokens)]


# --- the E2E challenge's scores --------------------------------------------------------------------------


def test_a_line_break_in_an_output_shifts_no_reference_in_what_tasks_report():
    hypotheses, references = ["a b c d e\nf", "one two three four five"], [["a b c d e f"], ["one two three four five"]]
    assert original.original(hypotheses, references)["original_BLEU"].value < 60
    assert original.cleaned(hypotheses, references)["original_BLEU"].value == 100


def test_the_originals_rouge_counts_the_space_that_its_decoded_texts_begin_with():
    assert original.cleaned(["a b"], [["a c"]])["original_ROUGE_1"].value == pytest.approx(2 / 3)
    # An output without tokens also has the empty word.
    assert original.cleaned([""], [["a"]])["original_ROUGE_1"].value == pytest.approx(2 / 3)
    assert original.cleaned(["a b"], [["a b"]])["original_ROUGE_2"].value == pytest.approx(1)


def test_e2e_scores_equal_the_official_scripts(e2e_example, e2e_golden, no_meteor):
    scores, notes = metrics.e2e(*e2e_example)
    assert list(scores) == ["BLEU", "NIST", "ROUGE_L", "CIDEr"] and len(notes) == 1
    assert {name: round(score.value, 4) for name, score in scores.items()} == {n: e2e_golden[n] for n in scores}


@needs_java
def test_meteor_equals_the_official_java_program(e2e_example, e2e_golden):
    scores, notes = metrics.meteor(*e2e_example)
    assert (
        round(scores["METEOR"].value, 4) == e2e_golden["METEOR"] and "version:1.5" in scores["METEOR"].signature
    )
    assert notes == []


def test_a_missing_meteor_is_left_out_with_one_line_that_says_how_to_get_it(no_meteor):
    scores, notes = metrics.meteor(["a pub"], [["a pub"]])
    assert scores == {}
    assert len(notes) == 1 and "\n" not in notes[0]
    assert "pycocoevalcap==1.2" in notes[0] and "nltk.downloader wordnet" in notes[0]


def test_nltks_meteor_bears_its_own_name(no_meteor, monkeypatch):
    monkeypatch.setattr(caption, "meteor_nltk", lambda *_: 0.5)
    scores, notes = metrics.meteor(["a pub"], [["a pub"]])
    assert list(scores) == ["METEOR_nltk"] and "nltk" in scores["METEOR_nltk"].signature
    assert len(notes) == 1 and "not comparable" in notes[0]


def test_nltks_meteor_without_wordnet_is_refused_even_for_equal_texts(monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(caption.MeteorError, match="WordNet data are not installed"):
        caption.meteor_nltk([["a"]], [[["a"]]])


@pytest.mark.parametrize("behaviour", ["exit 1", "echo nonsense", "sleep 60"])
def test_a_broken_java_is_a_note_and_never_hangs(behaviour, tmp_path, monkeypatch):
    (tmp_path / "java").write_text(f"#!/bin/sh\n[ '{behaviour}' = 'sleep 60' ] && exec sleep 60\n{behaviour}\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(caption.importlib.util, "find_spec", lambda _: Package)
    with pytest.raises(caption.MeteorError, match="failed or took too long"):
        caption.meteor_java([["a"]], [[["a"]]], timeout=0.5)


class Package:
    submodule_search_locations = ("nowhere",)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Isn't it kid-friendly? They CANNOT, we've...", "is n't it kid-friendly they can not we 've"),
        ("Zizzi's; the parents’ “best” café", "zizzi 's the parents best café"),
        ("Price £20-25 (less than £20), or €5.50", "price # 20-25 -lrb- less than # 20 -rrb- or $ 5.50"),
        ("£20-£25 – cheap -- 10% - ok", "# 20 # 25 cheap 10 % ok"),
        ("A 3-star pub, rated 5 out of 5 or 3/5", "a 3-star pub rated 5 out of 5 or 3/5"),
        ("fish & chips, rock&roll, B&B, AT&amp;T", "fish & chips rock & roll b&b at&t"),
        (
            "It is near.There is the area,The U.K. etc. 7 p.m.",
            "it is near.there is the area the u.k. etc. 7 p.m.",
        ),
        ("[ok] {ok} and/or he/she", "-lsb- ok -rsb- -lcb- ok -rcb- and/or he/she"),
        ("Really?! Wow!! O'Connor's gonna go", "really ?! wow !! o'connor 's gon na go"),
        ("1,000.50 at 7:30pm, No. 10 St. James St.", "1,000.50 at 7:30 pm no. 10 st. james st."),
        (". , ; ' \" `` -", ""),
        ("", ""),
    ],
)
def test_ptb_tokens_equal_stanfords(text, tokens):
    """The right-hand sides come from Stanford CoreNLP 3.4.1 and the caption code's filter."""
    assert caption.ptb_tokenize(text) == tokens.split()


@needs_java
def test_ptb_tokens_of_the_references_equal_the_java_tokenizers(e2e_example, tmp_path):
    lines = [line for group in e2e_example[1] for line in group]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    jar = find_spec("pycocoevalcap").submodule_search_locations[0] + "/tokenizer/stanford-corenlp-3.4.1.jar"
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", tmp_path / "lines.txt"]
    java = subprocess.run(["java", "-cp", jar, *program], capture_output=True, text=True, timeout=120)
    theirs = [[t for t in line.split() if t not in caption._DROPPED] for line in java.stdout.splitlines()]
    assert [caption.ptb_tokenize(line) for line in lines] == theirs


def test_mteval_tokens_split_punctuation_but_not_numbers():
    text = "It's £20-25, i.e. 1,000.50 (É) &amp; kid-friendly."
    tokens = "it's £20 - 25 , i . e . 1,000.50 ( É ) & kid-friendly ."
    assert " ".join(caption.mteval_tokenize(text)) == tokens


def test_bleu_takes_the_closest_reference_length_and_the_shorter_on_a_tie():
    hypothesis = ["a b c d e f"]
    assert caption.bleu_nist(hypothesis, [["a b c d e f g h", "a b c d"]])[0] == pytest.approx(1)
    assert caption.bleu_nist(hypothesis, [["a b c d e f g h"]])[0] == pytest.approx(math.exp(1 - 8 / 6))


def test_bleu_smooths_as_mteval_does():
    # one of two words, no pair: 1/2 and 1/(2·1); orders without any n-gram count as 1
    assert caption.bleu_nist(["a b"], [["a c"]])[0] == pytest.approx((1 / 2 * 1 / 2) ** (1 / 4))


def test_nist_weighs_by_information_and_halves_at_two_thirds_of_the_length():
    # words: log2(3/1) each; pairs: log2(1/1) = 0
    assert caption.bleu_nist(["a b c"], [["a b c"]])[1] == pytest.approx(math.log2(3))
    assert caption.bleu_nist(["a b"], [["a b c"]])[1] == pytest.approx(math.log2(3) / 2)


def test_cider_of_perfect_outputs_is_ten():
    texts = ["a big red pub in town", "the small old river house there"]
    tokens = tokenized(texts, [[text] for text in texts])
    assert caption.cider(*tokens) == pytest.approx(10)


# --- properties ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(corpora)
def test_scores_stay_in_their_ranges(corpus):
    bleu, nist, rouge_l, cider = pure_scores(*map(list, zip(*corpus)))
    assert 0 <= bleu <= 1 + 1e-9 and nist >= 0 and 0 <= rouge_l <= 1 + 1e-9 and -1e-9 <= cider <= 10 + 1e-9


@settings(max_examples=60, deadline=None)
@given(corpora, st.randoms(use_true_random=False))
def test_the_order_of_examples_and_of_references_does_not_matter(corpus, random):
    shuffled = [(hypothesis, random.sample(group, len(group))) for hypothesis, group in corpus]
    random.shuffle(shuffled)
    assert pure_scores(*zip(*shuffled)) == pytest.approx(pure_scores(*zip(*corpus)))


@settings(max_examples=60, deadline=None)
@given(st.lists(words.map(lambda w: " ".join(["near", *w, "The", "pub", "Burger"])), min_size=1, max_size=4))
def test_a_reference_scores_best_against_itself(targets):
    references = [[text] for text in targets]
    bleu, _, rouge_l, cider = pure_scores(targets, references)  # NIST has no maximum
    assert bleu == pytest.approx(1) and rouge_l == pytest.approx(1)
    assert pure_scores([text.rsplit(" ", 1)[0] for text in targets], references)[3] <= cider + 1e-9
    assert metrics.bleu(targets, references).value == pytest.approx(100)
    assert all(score.value == pytest.approx(1) for score in metrics.rouge(targets, references).values())


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_tokenized_and_no_letter_is_lost(text):
    tokens = caption.ptb_tokenize(text)
    assert all(tokens) and caption.mteval_tokenize(text) is not None
    kept = [c for c in text if "a" <= c <= "z" and "&" not in text]
    assert len([c for c in "".join(tokens) if "a" <= c <= "z"]) >= len(kept)


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_common_subsequence_is_symmetric_and_bounded(a, b):
    length = caption.longest_common_subsequence(a, b)
    assert length == caption.longest_common_subsequence(b, a) <= min(len(a), len(b))
    assert caption.longest_common_subsequence(a, a + b) == len(a)


# --- the original code's scores --------------------------------------------------------------------------


def test_original_bleu_equals_the_original(vlm_golden):
    for subset in [{"idx": [0, 50], **vlm_golden}, *vlm_golden["bleu_subsets"]]:
        hypotheses, references = zip(*vlm_golden["pairs"][slice(*subset["idx"])])
        assert original.multi_bleu(hypotheses, references) == subset["bleu"]
        assert original.multi_bleu(hypotheses, references, lowercase=True) == subset["bleu_lc"]
    assert original.multi_bleu([], []) == vlm_golden["empty_list_bleu"]


def test_original_rouge_equals_the_original(vlm_golden):
    hypotheses, references = zip(*vlm_golden["pairs"])
    assert list(original.rouge(hypotheses, references).values()) == pytest.approx(
        vlm_golden["rouge"], abs=1e-12
    )
    for i, pair in enumerate(vlm_golden["pairs"]):
        assert original.rouge_n(*pair, 1) == pytest.approx(vlm_golden["rouge_1_per_pair_f_p_r"][i], abs=1e-12)
        assert original.rouge_n(*pair, 2) == pytest.approx(vlm_golden["rouge_2_per_pair_f_p_r"][i], abs=1e-12)
        assert original.rouge_l(*pair) == pytest.approx(vlm_golden["rouge_l_per_pair_f_p_r"][i], abs=1e-12)


def test_original_scores_of_an_empty_hypothesis_equal_the_original(vlm_golden):
    golden = vlm_golden["with_empty_hyp"]
    hypotheses, references = zip(*golden["pairs"])
    assert original.multi_bleu(hypotheses, references) == golden["bleu"]
    assert list(original.rouge(hypotheses, references).values()) == pytest.approx(golden["rouge"], abs=1e-12)


def test_original_bleu_of_a_line_break_shifts_the_lines(vlm_golden):
    text = "a b c d e"
    assert original.multi_bleu([text, text], [text, text]) == 100.0
    assert original.multi_bleu([f"{text}\n{text}"], [text]) == vlm_golden["newline_in_hyp"] == 0.0


def test_original_scores_bear_their_own_names(vlm_golden):
    hypotheses, references = zip(*vlm_golden["pairs"])
    scores = original.original(hypotheses, [[text, "another"] for text in references])
    assert list(scores) == ["original_BLEU", "original_BLEU_lc"] + [
        f"original_ROUGE_{name}" for name in ("1", "2", "L", "mean")
    ]
    assert scores["original_BLEU"].value == vlm_golden["bleu"]
    assert scores["original_ROUGE_mean"].value == pytest.approx(vlm_golden["rouge"][3], abs=1e-12)
    assert all("original:VLM" in score.signature for score in scores.values())


# --- library scores, output ------------------------------------------------------------------------------


def test_bleu_and_chrf_take_a_varying_number_of_references():
    import sacrebleu

    hypotheses, references = (
        ["the dog bit me", "a cat sat here"],
        [["the dog bit you", "dog bit me"], ["a cat sat"]],
    )
    streams = [["the dog bit you", "a cat sat"], ["dog bit me", None]]
    score = metrics.bleu(hypotheses, references)
    assert score.value == sacrebleu.corpus_bleu(hypotheses, streams).score
    assert score.signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    score = metrics.chrf(hypotheses, references)
    assert score.value == sacrebleu.corpus_chrf(hypotheses, streams).score and "nc:6" in score.signature


def test_rouge_takes_the_best_reference_and_a_line_as_a_sentence():
    scores = metrics.rouge(["b one\na two"], [["x y", "a two\nb one"]])
    assert scores["rouge1"].value == 1 and scores["rougeL"].value == 0.5 and scores["rougeLsum"].value == 1
    stemmed, plain = (metrics.rouge(["dogs"], [["dog"]], stem=stem)["rouge1"] for stem in (True, False))
    assert (stemmed.value, plain.value) == (1, 0)
    assert "stem:porter" in stemmed.signature and "stem:no" in plain.signature


def test_perplexity_is_token_weighted_and_refuses_no_tokens():
    assert metrics.perplexity(10 * math.log(7), 10).value == pytest.approx(7)
    assert metrics.perplexity(1e6, 1).value == math.inf
    with pytest.raises(UserError, match="no target tokens"):
        metrics.perplexity(0.0, 0)


def test_every_number_has_a_signature(e2e_example, no_meteor):
    scores = metrics.e2e(*e2e_example)[0] | metrics.rouge(*e2e_example) | original.original(*e2e_example)
    scores |= {"sacreBLEU": metrics.bleu(*e2e_example), "chrF": metrics.chrf(*e2e_example)}
    assert all(score.signature.startswith("nrefs:") for score in scores.values())


def test_table_is_aligned_and_json_is_valid():
    scores = {"BLEU": Score(27.25, "sig"), "perplexity": Score(math.inf, "tokens:3")}
    assert metrics.format_scores(scores) == "BLEU        27.2500  sig\nperplexity      inf  tokens:3"
    assert metrics.format_scores({}) == ""
    assert json.loads(json.dumps(metrics.to_json(scores), allow_nan=False)) == {
        "BLEU": {"score": 27.25, "signature": "sig"},
        "perplexity": {"score": None, "signature": "tokens:3"},
    }


def test_importing_the_module_imports_no_scorer():
    code = (
        "import sys, utils.metrics, utils.original_metrics as o\n"
        "heavy = {'torch', 'numpy', 'nltk', 'sacrebleu', 'rouge_score'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- input -----------------------------------------------------------------------------------------------


@pytest.fixture
def a_file(tmp_path):
    def write(content):
        path = tmp_path / "texts.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_lines_keep_empty_hypotheses_and_lose_only_line_ends(a_file):
    assert metrics.read_lines(a_file("\ufeffa b\r\n\n c\n")) == ["a b", "", " c"]
    assert metrics.read_lines(a_file("a\u2028b\x0cc")) == ["a\u2028b\x0cc"]  # only \n ends a line


def test_references_are_grouped_by_empty_lines_or_one_a_line(a_file):
    assert metrics.read_references(a_file("a\nb\n\nc\n\n")) == [["a", "b"], ["c"]]
    assert metrics.read_references(a_file("a\nb\nc\n\n")) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("content", ["", "\n", " \n\n"])
def test_an_empty_file_is_named(content, a_file):
    with pytest.raises(UserError, match=r"texts\.txt: the file is empty"):
        metrics.read_references(a_file(content))


def test_empty_outputs_are_outputs_but_an_empty_file_is_none(a_file):
    assert metrics.read_lines(a_file("\n\nx\n")) == ["", "", "x"]
    assert metrics.read_lines(a_file("\n\n")) == ["", ""]
    with pytest.raises(UserError, match=r"texts\.txt: the file is empty"):
        metrics.read_lines(a_file(""))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt: cannot read it"):
        metrics.read_lines(tmp_path / "absent.txt")


def test_a_byte_that_is_not_utf8_is_named_with_its_line(a_file):
    with pytest.raises(UserError, match=r"texts\.txt:2: byte 4 of the line is not UTF-8"):
        metrics.read_lines(a_file(b"fine\ncaf\xe9\n"))


def test_an_example_without_references_is_named_with_its_line(a_file):
    with pytest.raises(UserError, match=r"texts\.txt:3: an example without references"):
        metrics.read_references(a_file("a\n\n\nb\n"))


@pytest.mark.parametrize("score", [metrics.bleu, metrics.chrf, metrics.rouge, metrics.e2e, original.original])
def test_wrong_shapes_are_refused_with_a_reason(score):
    for hypotheses, references, found in [
        (["a", "b"], [["a"]], "2 outputs, but references for 1 example"),
        ([], [], "nothing to score"),
        (["a"], ["a"], "example 0: the references are 'a'"),
        (["a", "b"], [["a"], []], "example 1: the references are "),
        ([None], [["a"]], "example 0: the hypothesis is None"),
    ]:
        with pytest.raises(UserError, match=found):
            score(hypotheses, references)


def test_clean_up_is_what_the_originals_tokenizer_did_in_decoding():
    cases = json.loads((GOLDEN / "vglm" / "tokenizer.json").read_text(encoding="utf-8"))["cases"]
    plain = [c for c in cases if c["text"].strip() and "<" not in c["text"]]
    assert len(plain) >= 6
    for case in plain:
        assert original.clean_up(" " + case["text"].strip()) == case["decoded"]
    assert original.clean_up("i do not know , it 's here .") == "i don't know, it's here."


def test_a_metric_says_what_it_cannot_see(caplog):
    latin, greek, chinese = ["A b c."], ["Ένα δύο 3."], ["今天天气很好。"]
    scores = metrics.rouge(latin + greek + chinese, [latin, greek, chinese])
    assert all(score.signature.endswith("|unseen:2") for score in scores.values())
    # The 3 is all that it sees of the Greek text, and it sees nothing of the Chinese one.
    assert scores["rouge1"].value == pytest.approx(2 / 3)
    assert "says little about 2 of 3 examples" in caplog.text
    caplog.clear()
    assert metrics.bleu(greek, [greek]).signature.endswith("unseen:1") is False
    assert not caplog.text
    assert metrics.bleu(chinese, [chinese]).signature.endswith("|unseen:1")
    accented = ["Größe und Übermut: é"]
    assert "unseen" not in metrics.rouge(accented, [accented])["rouge1"].signature
