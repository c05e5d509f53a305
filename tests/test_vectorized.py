"""`clean_batch` against `clean` and the published functions, and its counts against the rules one by one."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from growth import is_linear
from hypothesis import given
from hypothesis import strategies as st
from test_cleaning import PUBLISHED, TEXT, any_text, hostile_strings, published_functions

from kcelectra import clean, clean_batch
from kcelectra.corpus import vectorized
from kcelectra.corpus.cleaning import RULE_SETS

NUM_COMMENTS = 683_580
each_rule_set = pytest.mark.parametrize("rules", RULE_SETS)
each_published = pytest.mark.parametrize("rules", PUBLISHED)


@pytest.fixture(scope="module")
def published() -> dict[str, Callable[[str], str]]:
    return published_functions()


@pytest.fixture(scope="module")
def comments(shared_data) -> list[str]:
    import pyarrow.parquet as pq

    files = sorted((shared_data / "comments").glob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    assert len(texts) == NUM_COMMENTS
    return texts


def apply_rules(texts: list[str], rules: str) -> tuple[list[str], Counter[str]]:
    """Return the texts after each rule in turn, and the number of texts that each rule changed."""
    cleaned, counts = [], Counter()
    for text in texts:
        for rule in RULE_SETS[rules]:
            before, text = text, rule(text)
            counts[rule.__name__] += text != before
        cleaned.append(text)
    return cleaned, +counts


def assert_same(texts: list[str], ours: list[str], theirs: list[str]) -> None:
    different = [rows for rows in zip(texts, ours, theirs, strict=True) if rows[1] != rows[2]]
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {ascii(different[0])}"


def assert_as_one_by_one(texts: list[str], rules: str) -> None:
    counts = Counter()
    ours = clean_batch(texts, rules, counts=counts)
    theirs, expected = apply_rules(texts, rules)
    assert_same(texts, ours, theirs)
    assert counts == expected


# any text

TEXTS = st.lists(TEXT, max_size=12)


@any_text
@given(TEXTS)
def test_a_batch_is_cleaned_and_counted_as_one_by_one(texts):
    for rules in RULE_SETS:
        assert_as_one_by_one(texts, rules)


@any_text
@given(texts=TEXTS)
def test_a_batch_equals_the_published_function(published, texts):
    for rules in PUBLISHED:
        assert_same(texts, clean_batch(texts, rules), [published[rules](text) for text in texts])


@each_rule_set
def test_hostile_strings_are_cleaned_and_counted_as_one_by_one(rules):
    assert_as_one_by_one(hostile_strings(5000), rules)


@any_text
@given(TEXTS)
def test_a_batch_is_cleaned_by_each_rule_of_corpus_alone(texts):
    """In the set, what one rule overlooks may be found because of the one before."""
    with pytest.MonkeyPatch.context() as patch:
        for rule in RULE_SETS["corpus"]:
            patch.setitem(RULE_SETS, rule.__name__, (rule,))
            assert_as_one_by_one(texts, rule.__name__)


@pytest.mark.parametrize("rule", RULE_SETS["corpus"], ids=lambda rule: rule.__name__)
def test_hostile_strings_are_cleaned_by_each_rule_of_corpus_alone(rule, monkeypatch):
    monkeypatch.setitem(RULE_SETS, rule.__name__, (rule,))
    assert_as_one_by_one(hostile_strings(5000), rule.__name__)


# every code point

FORMS = ("{}", "가{}나")
ASSIGNED = (*range(0x18000), *range(0x1AFE0, 0x20000), *range(0xE0000, 0xE0200))  # all but Hanja and private use


@each_rule_set
@pytest.mark.parametrize("form", FORMS)
def test_most_code_points_are_cleaned_and_counted_as_one_by_one(rules, form):
    code_points = (*ASSIGNED, *range(0x18000, 0x110000, 97), 0x10FFFF)
    assert_as_one_by_one([form.format(chr(point)) for point in code_points], rules)


@pytest.mark.slow
@each_rule_set
@pytest.mark.parametrize("form", [*FORMS, "{0}{0}{0}", "e{}"])
def test_every_code_point_is_cleaned_and_counted_as_one_by_one(rules, form):
    assert_as_one_by_one([form.format(chr(point)) for point in range(0x110000)], rules)


@pytest.mark.slow
@each_published
@pytest.mark.parametrize("form", FORMS)
def test_every_code_point_is_cleaned_as_published(rules, form, published):
    texts = [form.format(chr(point)) for point in range(0x110000)]
    assert_same(texts, clean_batch(texts, rules), [published[rules](text) for text in texts])


# real comments


def test_every_real_comment_is_cleaned_by_v2021_as_published(comments, published):
    assert_same(comments, clean_batch(comments, "v2021"), [published["v2021"](text) for text in comments])


def test_every_real_comment_is_cleaned_by_v2022_as_one_by_one(comments):
    """One by one is as published: on hostile strings in `test_cleaning`, on every comment in a slow test below."""
    assert_same(comments, clean_batch(comments, "v2022"), [clean(text, "v2022") for text in comments])


@each_rule_set
def test_real_comments_are_cleaned_and_counted_as_one_by_one(rules, comments):
    assert_as_one_by_one(comments[::20], rules)


@pytest.mark.slow
@each_published
def test_every_real_comment_is_cleaned_as_published(rules, comments, published):
    expected = [published[rules](text) for text in comments]
    assert_same(comments, clean_batch(comments, rules), expected)
    assert_same(comments, [clean(text, rules) for text in comments], expected)


@pytest.mark.slow
@each_rule_set
def test_every_real_comment_is_cleaned_and_counted_as_one_by_one(rules, comments):
    assert_as_one_by_one(comments, rules)


# batches

#: Neighbours that would be a run, a unit, a URL, an entity, an emoji or a composed letter, were they one text.
NEIGHBOURS = (
    "|ㅋㅋ|ㅋㅋ||ab|ab|ab|http:|//a.kr|a.|com|www.|x|:|//|https://a|.kr|O|OO|○|○○|&|amp;|가 | 나| | ||\n|\n|\n\n|"
    "가\n\n|\n나|\r|\n|e|\u0301|ᄒ|ᅡ|\u3164|ㅂㅘㅅ|🇰|🇷|1|\ufe0f\u20e3|\x1b[|31m|\ue000|\ue000|가\ue000|"
    "\ue000나|👨\u200d|👩|ㅋ\n|ㅋ\n|ㅋ\n|♥|♥ | ♥|\u200b|\u200b|0000|0000|\ud83d|\ude00"
).split("|")


@each_rule_set
def test_neighbours_do_not_touch(rules):
    for seed in range(20):
        assert_as_one_by_one(random.Random(seed).sample(NEIGHBOURS, len(NEIGHBOURS)), rules)
    assert_as_one_by_one([*NEIGHBOURS], rules)


@each_rule_set
@pytest.mark.parametrize(
    ("limit", "value"),
    [("BATCH_SIZE", 1), ("BATCH_SIZE", 2), ("BATCH_SIZE", 7), ("BATCH_CHARS", 1), ("BATCH_CHARS", 100)],
)
def test_the_batch_size_changes_nothing(rules, limit, value, monkeypatch):
    texts = [*NEIGHBOURS, *hostile_strings(600)]
    counts, expected = Counter(), Counter()
    cleaned = clean_batch(texts, rules, counts=expected)
    monkeypatch.setattr(vectorized, limit, value)
    assert clean_batch(texts, rules, counts=counts) == cleaned
    assert counts == expected


@each_rule_set
def test_more_than_a_batch_is_cleaned_in_order(rules):
    texts = [*NEIGHBOURS, *hostile_strings(1200)] * 4
    random.Random(0).shuffle(texts)
    for number in (vectorized.BATCH_SIZE, vectorized.BATCH_SIZE + 1, len(texts)):
        assert len(texts) >= number
        assert_as_one_by_one(texts[:number], rules)


@each_rule_set
def test_the_order_of_rows_changes_nothing(rules):
    texts = list(dict.fromkeys([*NEIGHBOURS, *hostile_strings(1500)]))
    cleaned = dict(zip(texts, clean_batch(texts, rules), strict=True))
    random.Random(1).shuffle(texts)
    assert clean_batch(texts, rules) == [cleaned[text] for text in texts]


def test_empty_comments_keep_their_place():
    assert clean_batch(["", "漢字", "가", ""]) == ["", "", "가", ""]
    assert clean_batch([]) == []


@each_rule_set
def test_comments_come_from_any_iterable_once(rules):
    texts = hostile_strings(200)
    assert clean_batch(iter(texts), rules) == clean_batch(tuple(texts), rules) == clean_batch(texts, rules)


def test_counts_are_added_to_those_before():
    counts = Counter(squeeze_spaces=5, other=1)
    clean_batch(["가  나", "다 ", "라"], counts=counts)
    clean_batch(["ㅋㅋㅋㅋ♥"], counts=counts)
    assert counts == Counter(squeeze_spaces=8, other=1, keep_korean=1, shorten_repeats=1)


# long text

LONG = (
    "ㅋ|ab|○|&|&amp|a.|www.|://|http://|http://a.|http://a|a@|a.kr|a.kr+|😀\u200d|👨\u200d👩\u200d|🏴\U000e0067|\u0301|"
    "\u3099|ᄀ|\u0301\u0316|\u302a\u302b| |\n|\x1b[|\x1b[0|\x1b|ㅋㅎ|가나다라마바사아자차카|1|\u3164ㄱ|＆|a-|/가|=|"
    "\ufe0f|1\ufe0f|♥|O|가 |\U000e0067"
).split("|")


@each_rule_set
@pytest.mark.parametrize("unit", LONG, ids=ascii)
def test_time_grows_with_the_length_of_the_text(rules, unit):
    short, long = (unit * (length // len(unit)) for length in (5_000, 80_000))
    assert is_linear(partial(clean, rules=rules), short, long)
    assert is_linear(lambda text: clean_batch([text], rules), short, long)
