"""What a vocabulary makes of texts."""

import re

import pytest

from kcelectra.finetuning.coverage import measure_coverage, measure_span_ceiling
from kcelectra.finetuning.sources import Span, read_rows, read_spans
from kcelectra.finetuning.tasks import TASKS
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

# kcelectra.md, 1.5: computed apart from this code; the last digit of v2021 and KoELECTRA v1 is rounded there
CEILINGS = {
    "kcbert_vocab.txt": 78.1,
    "kcelectra_dev25000_vocab.txt": 78.9,
    "kcelectra_v2021_vocab.txt": 84.0,
    "kcelectra_v2022_vocab.txt": 82.5,
    "koelectra_v1_vocab.txt": 71.5,
}
TOKENS = [
    "영화",
    "##가",
    "##는",
    "좋다",
    "ㅋㅋ",
    "##ㅋㅋ",
    "##ㅋ",
    "👍",
    "##👍",
    "!",
    "(",
    ")",
    "서울",
    "##에서",
    "서울은",
]


@pytest.fixture(scope="module")
def tokenizer():
    return as_bert_tokenizer([*SPECIAL_TOKENS, *TOKENS])


def test_tokens_are_counted_per_eojeol(tokenizer):
    coverage = measure_coverage(tokenizer, [("영화가 좋다!", "좋다"), ("영화는", "")], max_length=50)
    assert (coverage["num_rows"], coverage["num_eojeols"], coverage["num_tokens"]) == (2, 4, 7)
    assert coverage["tokens_per_eojeol"] == 7 / 4
    assert coverage["unk_share"] == 0 and coverage["unknown"] == {}


def test_words_that_are_lost_are_named(tokenizer):
    coverage = measure_coverage(tokenizer, [("노잼 영화가",), ("노잼! 핵",)], max_length=50)
    assert coverage["unknown"] == {"노잼": 2, "핵": 1}
    assert coverage["unk_share"] == 3 / 6


@pytest.mark.parametrize(("max_length", "share"), [(3, 1.0), (4, 0.5), (5, 0.0)])
def test_a_row_is_truncated_beyond_its_special_tokens(tokenizer, max_length, share):
    rows = [("영화는 좋다",), ("영화가",)]  # 3 + 2 and 2 + 2
    assert measure_coverage(tokenizer, rows, max_length=max_length)["truncated_share"] == share


@pytest.mark.parametrize(("max_length", "share"), [(5, 1.0), (6, 0.0)])
def test_a_pair_has_three_special_tokens(tokenizer, max_length, share):
    rows = [("좋다", "영화가")]
    assert measure_coverage(tokenizer, rows, max_length=max_length)["truncated_share"] == share


def test_emoji_and_runs_of_jamo_are_whole_within_one_token(tokenizer):
    texts = ["좋다👍 👍", "좋다ㅋㅋ ㅋㅋ", "좋다ㅋㅋㅋ", "😀", "좋다ㅠㅠ", "ㅋ"]
    coverage = measure_coverage(tokenizer, [(text,) for text in texts], max_length=50)
    assert (coverage["num_emoji"], coverage["emoji_whole"]) == (3, 2 / 3)
    assert (coverage["num_jamo"], coverage["jamo_whole"]) == (4, 2 / 4)


def test_shares_of_nothing_are_none(tokenizer):
    coverage = measure_coverage(tokenizer, [], max_length=50)
    assert coverage["tokens_per_eojeol"] is coverage["unk_share"] is coverage["emoji_whole"] is None


def test_a_byte_level_vocabulary_loses_nothing(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["영화가 좋다 👍"] * 3, vocab_size=300, show_progress=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")
    coverage = measure_coverage(fast, [("영화가 좋다 핵노잼",)], max_length=50)
    assert coverage["unk_share"] == 0 and coverage["unknown"] == {}


@pytest.mark.parametrize(
    ("context", "answer", "can_be_given"),
    [
        ("영화가 좋다", "영화", True),
        ("서울에서 좋다", "서울", True),
        ("서울은 좋다", "서울", False),  # one token
        ("(서울은) 좋다", "서울은", True),
        ("영화 (서울은", "(서울은", True),
        ("서울은 영화", "서울은 영화", True),
        ("노잼은 좋다", "노잼", False),  # one [UNK]
        ("좋다 노잼", "노잼", True),
    ],
)
def test_an_answer_can_be_given_if_tokens_begin_and_end_with_it(tokenizer, context, answer, can_be_given):
    span = Span("?", context, context.index(answer), answer)
    assert measure_span_ceiling(tokenizer, [span]) == can_be_given


@pytest.mark.parametrize(("name", "ceiling"), CEILINGS.items())
def test_the_ceilings_of_the_published_vocabularies_are_those_measured_before(shared_data, name, ceiling):
    tokenizer = load_tokenizer(shared_data / "vocab" / name)
    measured = measure_span_ceiling(tokenizer, read_spans(TASKS["korquad"], shared_data))
    assert 100 * measured == pytest.approx(ceiling, abs=0.07)


def test_counts_are_those_of_the_obvious_way(shared_data):
    tokenizer = load_tokenizer(shared_data / "vocab" / "kcelectra_v2022_vocab.txt")
    rows = read_rows(TASKS["kmhas"], shared_data)[:3000]
    coverage = measure_coverage(tokenizer, rows, max_length=40)
    encoded = [tokenizer(text)["input_ids"] for (text,) in rows]
    assert coverage["num_tokens"] == sum(map(len, encoded)) - 2 * len(rows)
    assert coverage["unk_share"] == sum(ids.count(1) for ids in encoded) / coverage["num_tokens"]
    assert coverage["truncated_share"] == sum(len(ids) > 40 for ids in encoded) / len(rows) > 0
    assert coverage["num_jamo"] == sum(len(re.findall("[ㄱ-ㅣ]{2,}", text)) for (text,) in rows)


def test_a_truncation_before_changes_nothing(tokenizer):
    rows = [("영화는 좋다 영화가 좋다",)]
    expected = measure_coverage(tokenizer, rows, max_length=50)
    tokenizer(rows[0][0], truncation=True, max_length=4, padding="max_length")
    assert measure_coverage(tokenizer, rows, max_length=50) == expected
    assert measure_span_ceiling(tokenizer, [Span("?", rows[0][0], 10, "좋다")]) == 1
