"""Figures of tasks, against other implementations and by hand."""

import numpy as np
import pytest

from pipeline import tasks
from pipeline.evaluation.intervals import correlation, share
from pipeline.tasks import question_answering as qa
from pipeline.tasks.token_classification import entities
from tests.test_tasks import NAMES, ROWS, TEXTS, judged


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_described_by_a_metric(name):
    """What `figures` gives is declared in `metrics`, the primary one included; of the baseline, too."""
    task = tasks.load(name)
    metrics = {metric.name: metric for metric in task.metrics}
    found = task.figures(ROWS[name], task.baseline(ROWS[name], ROWS[name]))
    assert set(found) == set(metrics)
    assert metrics[task.primary].better == "more"  # which early stopping goes by
    assert all(" " in metric.meaning and metric.better for metric in metrics.values())


def test_helpers_are_no_tasks():
    assert tasks.known() == sorted([*ROWS, "image_classification", "zero_shot"])


def test_macro_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    rows = [{"label": label} for label in rng.choice(list("abcd"), 200, p=[0.6, 0.2, 0.15, 0.05])]
    said = [{"label": row["label"] if rng.random() < 0.7 else rng.choice(list("abcd"))} for row in rows]
    found = tasks.load("classification").figures(rows, said)
    right, told = [row["label"] for row in rows], [line["label"] for line in said]
    assert found["macro_f1"].estimate().value == pytest.approx(metrics.f1_score(right, told, average="macro"))
    assert found["accuracy"].estimate().value == pytest.approx(metrics.accuracy_score(right, told))


def test_bleu_is_that_of_the_whole_corpus():
    bleu = pytest.importorskip("sacrebleu.metrics.bleu").BLEU()
    pytest.importorskip("rouge_score")
    rows = [{"target": text} for text in TEXTS[:20]]
    said = [{"target": text.replace("saw", "met") if number % 2 else text} for number, text in enumerate(TEXTS[:20])]
    found = tasks.load("sequence_to_sequence").figures(rows, said)
    whole = bleu.corpus_score([line["target"] for line in said], [[row["target"] for row in rows]]).score
    assert found["bleu"].estimate().value == pytest.approx(whole / 100)
    assert found["exact_match"].estimate().value == 0.5


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    right = rng.integers(0, 3, 100).astype(float)
    rows = [{"score": score} for score in right]
    said = [{"score": round(score + rng.normal(), 1)} for score in right]
    found = tasks.load("similarity").figures(rows, said)
    told = [line["score"] for line in said]
    assert found["spearman"].estimate().value == pytest.approx(stats.spearmanr(right, told).statistic)
    assert found["pearson"].estimate().value == pytest.approx(stats.pearsonr(right, told).statistic)
    assert correlation(right, np.ones(100)).estimate().value == 0  # who says the same of all knows nothing


@pytest.mark.parametrize(
    ("said", "answers", "f1", "exact"),
    [
        ("The Cat!", ["cat"], 1, 1), ("black cat", ["cat"], 2 / 3, 0), ("", [], 1, 1), ("cat", [], 0, 0), ("", ["cat"], 0, 0),
        ("dog", ["cat", "a dog"], 1, 1),
    ],
)  # fmt: skip
def test_answers_are_compared_as_squad_does(said, answers, f1, exact):
    found = tasks.load("question_answering").figures(
        [{"answers": [{"text": text, "start": 0} for text in answers]}], [{"answer": said}]
    )
    assert found["f1"].estimate().value == pytest.approx(f1)
    assert found["exact_match"].estimate().value == exact
    assert ("refused" in found) == (not answers)


def test_the_best_span_stays_in_the_context_and_in_its_bounds():
    window = qa._Window({}, {3: (0, 3), 4: (4, 7), 5: (8, 11)})
    start, end = np.log([0.01, 0.8, 0.01, 0.05, 0.08, 0.05]), np.log([0.01, 0.01, 0.8, 0.02, 0.06, 0.1])
    ((margin, text),) = window.spans(start, end, 2, "the cat saw", 1)
    assert text == "cat saw"  # the question's own tokens are likelier, and no answer
    assert margin == pytest.approx(np.log(0.08 * 0.1) - np.log(0.0001))
    assert [text for _, text in window.spans(start, end, 1, "the cat saw", 9)] == ["saw", "cat", "the"]
    every = list(window.spans(start, end, 3, "the cat saw", 9))
    assert len(every) == 6
    assert [margin for margin, _ in every] == sorted((margin for margin, _ in every), reverse=True)


def test_entities_by_hand():
    tags = ["B-A", "I-A", "O", "I-B", "B-B", "B-B", "I-A", "O"]
    assert entities(tags) == {("A", 0, 2), ("B", 3, 4), ("B", 4, 5), ("B", 5, 6), ("A", 6, 7)}
    rows = [{"tags": tags}, {"tags": ["O"] * 3}]
    said = [{"tags": ["B-A", "I-A", *["O"] * 6]}, {"tags": ["B-A", "O", "O"]}]
    assert tasks.load("token_classification").figures(rows, said)["entity_f1"].estimate().value == pytest.approx(2 / 7)


def test_entities_of_iobes_by_hand():
    tags = ["B-A", "E-A", "S-A", "S-A", "O", "B-B", "I-B", "E-B", "E-B", "I-B"]
    assert entities(tags) == {("A", 0, 2), ("A", 2, 3), ("A", 3, 4), ("B", 5, 8), ("B", 8, 9), ("B", 9, 10)}
    told = tasks.load("token_classification", {"scheme": "iobes"})
    assert told.primary == "entity_f1"
    assert told.labels([{"tags": tags}]) == sorted(set(tags))


def test_an_interval_over_groups_is_wider_where_groups_agree():
    scores = [float(number // 10 % 2) for number in range(100)]
    groups = [str(number // 10) for number in range(100)]
    alone, grouped = share(scores).estimate(), share(scores).estimate(groups=groups)
    assert alone.value == grouped.value == 0.5
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert grouped.n == 10


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("오늘은 날씨가 좋다", "나는 책을 읽는다"), ("ねこがすきです", "いぬはきらいだよ"), ("แมวนอนบนเสื่อ", "ฝนตกหนักวันนี้"),
        ("القط نام هنا", "ذهب الولد بعيدا"), ("天下大勢分久必合", "白日依山盡黃河"), ("кошка спит", "идёт дождь"), ("Öl über Ärger", "ein Süßes Glück"),
        ("बिल्ली सो रही है", "आज बारिश हुई थी"), ("yes", "no"), ("😀 😀", "🎉🎉🎉"),
    ],
)  # fmt: skip
def test_equal_texts_of_any_script_score_one_and_different_ones_do_not(text, other):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    task = tasks.load("sequence_to_sequence")

    def values(said):
        found = task.figures([{"target": text}], [{"target": said}])
        return [found[name].estimate().value for name in ("rouge_l", "bleu", "chrf", "exact_match")]

    assert values(text) == pytest.approx([1.0] * 4)
    assert max(values(other)) < 0.4


def test_no_guess_beats_the_baseline_of_f1():
    """A coin, a die by frequency and each constant label stay within the noise; who knows the text does not."""
    task, rng = tasks.load("classification"), np.random.default_rng(0)
    labels = rng.choice(list("abcd"), 2000, p=[0.7, 0.15, 0.1, 0.05])
    rows = [{"label": label} for label in labels]
    rival = task.figures(rows, task.baseline(rows, rows))["macro_f1"]
    assert rival.estimate().value == pytest.approx(0.25, abs=0.01)
    guesses = [rng.choice(list("abcd"), 2000), rng.permutation(labels), *[[label] * 2000 for label in "abcd"]]
    for guess in guesses:
        found = task.figures(rows, [{"label": label} for label in guess])["macro_f1"].estimate(rival)
        assert found.low <= 0
    knowing = [label if rng.random() < 0.2 else other for label, other in zip(labels, rng.permutation(labels), strict=True)]
    assert task.figures(rows, [{"label": label} for label in knowing])["macro_f1"].estimate(rival).low > 0


def test_chinese_is_compared_by_characters():
    rows = [{"answers": [{"text": "洛陽城", "start": 0}]}]
    found = tasks.load("question_answering").figures(rows, [{"answer": "洛陽城中"}])
    assert found["f1"].estimate().value == pytest.approx(6 / 7)
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    found = tasks.load("sequence_to_sequence").figures([{"target": "天下大勢"}], [{"target": "天下大勢"}])
    assert [found[name].estimate().value for name in ("rouge_l", "bleu", "chrf")] == pytest.approx([1, 1, 1])


SCRIPTS = {
    "korean": ("나는 오늘 학교에 갔다", "그는 어제 집에서 잤다"),
    "japanese": ("私は今日学校に行きました", "彼女が昨夜家で寝ていたよ"),
    "kana": ("わたしはきょうがっこうへいった", "コーヒーヲノムヒトダ"),
    "thai": ("ฉันไปโรงเรียนวันนี้", "เขาหลับอยู่ที่บ้าน"),
    "arabic": ("ذهبت إلى المدرسة اليوم", "نام الرجل في بيته أمس"),
    "hebrew": ("הלכתי היום לבית הספר", "הוא ישן אתמול בביתו"),
    "hindi": ("मैं आज स्कूल गया", "वह कल घर पर सोया"),
    "russian": ("Я сегодня пошёл в школу", "Он вчера спал дома"),
    "chinese": ("我今天去了学校", "他昨晚睡得很好"),
    "english": ("I went to school today", "he slept at home"),
}


@judged
@pytest.mark.parametrize("script", SCRIPTS)
def test_equal_texts_of_any_script_score_1_and_different_ones_less(script):
    """Of long texts, since BLEU counts four in a row; words in another order lie between."""
    one, other = (" ".join([text] * 3) for text in SCRIPTS[script])
    task = tasks.load("sequence_to_sequence")

    def figures(target, said):
        found = task.figures([{"source": "", "target": target}], [{"target": said}])
        return {name: figure.estimate().value for name, figure in found.items()}

    assert figures(one, one) == pytest.approx(dict.fromkeys(("chrf", "bleu", "rouge_l", "exact_match"), 1.0))
    apart = figures(one, other)
    assert apart["bleu"] < 0.1
    assert apart["rouge_l"] < 0.35
    assert apart["chrf"] < 0.3
    assert apart["exact_match"] == 0
    pieces = list(one) if script in ("japanese", "kana", "thai", "chinese") else one.split()
    half = (
        "".join(pieces[: len(pieces) // 2]) if len(pieces) > 15 or script == "chinese" else " ".join(pieces[: len(pieces) // 2])
    )
    near = figures(one, half)
    assert apart["rouge_l"] < near["rouge_l"] < 1
    assert apart["chrf"] < near["chrf"] < 1
