"""Pointing at answers: what can be given with a tokenizer is given, from whatever window has it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ElectraConfig

from kcelectra.errors import InputError
from kcelectra.finetuning.answers import normalize_answer
from kcelectra.finetuning.coverage import measure_span_ceiling
from kcelectra.finetuning.sources import Span, read_spans
from kcelectra.finetuning.spans import SpansHead
from kcelectra.finetuning.tasks import TASKS
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

PIECES = [
    "서울",
    "##에",
    "##서",
    "서울은",
    "누",
    "##가",
    "왔",
    "##다",
    "홍",
    "##길",
    "##동",
    "##이",
    "?",
    "(",
    ")",
    ".",
]
TOKENIZER = as_bert_tokenizer([*SPECIAL_TOKENS, *PIECES])
QUESTION, CONTEXT = "누가 왔다?", "서울에서 홍길동이 왔다."
#: [CLS] 누 ##가 왔 ##다 ? [SEP] 서울 ##에 ##서 홍 ##길 ##동 ##이 왔 ##다 . [SEP]
NUM_TOKENS = 18


def make_span(answer, *, context=CONTEXT, question=QUESTION):
    return Span(question, context, context.index(answer), answer)


def make_head(**options):
    return SpansHead(TOKENIZER, **options)


def as_logits(feature):
    """Return logits that say where the answer is; both are lowest in a window without it."""
    logits = np.zeros((2, len(feature["input_ids"])), dtype=np.float32)
    logits[0, feature["start_positions"]] = logits[1, feature["end_positions"]] = 1
    return tuple(logits)


def decode_gold(head, spans):
    features = head.encode(spans)
    return head.decode(spans, features, list(map(as_logits, features)))


def logits_at(feature, *peaks):
    """Return logits of zero but at `(first, last, score)`."""
    logits = np.zeros((2, len(feature["input_ids"])))
    for first, last, score in peaks:
        logits[0, first] = logits[1, last] = score
    return tuple(logits)


# rows


def test_the_tokens_of_the_answer_are_its_label():
    (feature,) = make_head().encode([make_span("홍길동")])
    offsets = feature.pop("offsets")
    pair = TOKENIZER(QUESTION, CONTEXT)
    assert feature == {
        "input_ids": pair["input_ids"],
        "token_type_ids": pair["token_type_ids"],
        "start_positions": 10,
        "end_positions": 12,
        "example": 0,
    }
    assert (offsets.dtype, offsets.shape) == (np.int32, (NUM_TOKENS, 2))
    assert offsets[[0, 1, 6, 17]].tolist() == [[-1, -1]] * 4
    assert offsets[[7, 10, 12]].tolist() == [[0, 2], [5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("context", "answer", "given"),
    [
        (CONTEXT, "서울", "서울"),
        (CONTEXT, "서울에서 홍길동이 왔다.", "서울에서 홍길동이 왔다."),
        ("(서울은) 왔다", "서울", "서울은"),  # one token
        ("왔다  서울", " 서울", "서울"),
        ("핵노잼이 왔다", "노잼", "핵노잼이"),  # one [UNK]
        ("왔다 노잼", "잼", "노잼"),
        ("\u200b서울 왔다", "\u200b서울", "서울"),
    ],
)
def test_the_tokens_that_cover_an_answer_are_given(context, answer, given):
    assert decode_gold(make_head(), [make_span(answer, context=context)]) == [given]


@pytest.mark.parametrize("room", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("stride", [0, 1, 2, 128])
def test_every_token_of_a_text_is_in_a_window(room, stride):
    head = make_head(max_length=8 + room, max_question_length=5, stride=stride)
    features = head.encode([make_span("홍길동")])
    rows = [[tuple(offset) for offset in feature["offsets"].tolist() if offset[0] >= 0] for feature in features]
    whole = [offset for offset in TOKENIZER(CONTEXT, return_offsets_mapping=True)["offset_mapping"] if any(offset)]
    assert sorted(set(sum(rows, []))) == whole
    shared = min(stride, room // 2)
    assert all(before[len(before) - shared :] == after[:shared] for before, after in zip(rows, rows[1:], strict=False))
    assert all(len(row) == room for row in rows[:-1]) and 0 < len(rows[-1]) <= room
    for feature in features:
        tokens = TOKENIZER.convert_ids_to_tokens(feature["input_ids"])
        assert tokens[:7] == "[CLS] 누 ##가 왔 ##다 ? [SEP]".split() and tokens[-1] == "[SEP]"
        assert feature["token_type_ids"] == [0] * 7 + [1] * (len(tokens) - 7)


def test_a_window_without_the_whole_answer_points_at_cls():
    head = make_head(max_length=12, max_question_length=5, stride=2)
    features = head.encode([make_span("홍길동이")])
    found = {
        context: (feature["start_positions"], feature["end_positions"])
        for feature in features
        for context in [" ".join(TOKENIZER.convert_ids_to_tokens(feature["input_ids"])[7:-1])]
    }
    assert found == {
        "서울 ##에 ##서 홍": (0, 0),
        "##서 홍 ##길 ##동": (0, 0),
        "##길 ##동 ##이 왔": (0, 0),
        "##이 왔 ##다 .": (0, 0),
    }
    features = head.encode([make_span("홍길동")])
    assert [feature["start_positions"] for feature in features] == [0, 8, 0, 0]
    assert [feature["end_positions"] for feature in features] == [0, 10, 0, 0]


def test_a_question_is_cut_and_the_text_is_not():
    span = make_span("홍길동", question="누가 " * 50)
    (feature,) = make_head(max_length=17, max_question_length=4).encode([span])
    assert feature["input_ids"] == TOKENIZER("누가 누가", CONTEXT)["input_ids"]
    assert (feature["start_positions"], feature["end_positions"]) == (9, 11)


def test_a_special_token_in_a_text_is_text():
    (feature,) = make_head().encode([make_span("왔다", context="[SEP] 왔다")])
    assert TOKENIZER.sep_token_id not in feature["input_ids"][7:-1]


def test_the_tokenizer_is_left_as_it_was():
    head = make_head(max_length=12, max_question_length=5)
    head.encode([make_span("홍길동")])
    assert TOKENIZER.backend_tokenizer.truncation is TOKENIZER.backend_tokenizer.padding is None
    assert measure_span_ceiling(TOKENIZER, [make_span(".")]) == 1


@pytest.mark.parametrize("context", ["", " ", "\u200b\x00"])
@pytest.mark.parametrize("question", ["", QUESTION])
def test_a_text_without_a_token_has_no_answer(context, question):
    head, span = make_head(), Span(question, context, 0, context[:1])
    (feature,) = head.encode([span])
    assert (feature["start_positions"], feature["end_positions"]) == (0, 0)
    assert head.decode([span], [feature], [as_logits(feature)]) == [""]


@pytest.mark.parametrize(("start", "answer"), [(0, ""), (3, "홍길동"), (-1, "."), (99, ""), (99, "홍길동")])
def test_an_answer_that_is_not_there_points_at_cls(start, answer):
    (feature,) = make_head().encode([Span(QUESTION, CONTEXT, start, answer)])
    assert (feature["start_positions"], feature["end_positions"]) == (0, 0)


# decoding


def decode_peaks(*peaks, **options):
    head, span = make_head(**options), make_span("홍길동")
    (feature,) = head.encode([span])
    return head.decode([span], [feature], [logits_at(feature, *peaks)])[0]


def test_the_best_pair_is_given():
    assert decode_peaks((7, 9, 1.0), (10, 12, 2.0)) == "홍길동"
    assert decode_peaks((7, 9, 2.0), (10, 12, 1.0)) == "서울에서"


def test_an_answer_does_not_end_before_it_begins():
    assert decode_peaks((14, 9, 3.0), (10, 12, 1.0)) == "왔"  # 3 + 0: the last of the earlier tokens cannot be had


def test_an_answer_is_not_longer_than_it_may_be():
    assert decode_peaks((7, 14, 3.0), max_answer_length=8) == "서울에서 홍길동이 왔"
    assert decode_peaks((7, 14, 3.0), (10, 12, 2.0), max_answer_length=4) == "홍길동"


@pytest.mark.parametrize("outside", [0, 1, 6, 17])
def test_an_answer_is_in_the_text(outside):
    assert decode_peaks((outside, outside, 9.0), (10, 12, 1.0)) == "홍길동"


def test_the_best_of_all_windows_is_given():
    head, spans = make_head(max_length=12, max_question_length=5, stride=1), [make_span("서울"), make_span("홍길동")]
    features = head.encode(spans)
    assert [feature["example"] for feature in features] == [0, 0, 0, 1, 1, 1]
    scores = [1.0, 3.0, 2.0, 1.0, 2.0, 3.0]
    logits = [logits_at(row, (7, 8, score)) for row, score in zip(features, scores, strict=True)]
    assert head.decode(spans, features, logits) == ["홍길", "이 왔"]
    back = slice(None, None, -1)
    assert head.decode(spans, features[back], logits[back]) == ["홍길", "이 왔"]


def test_logits_of_half_precision_do_not_overflow():
    head, span = make_head(), make_span("홍길동")
    (feature,) = head.encode([span])
    logits = tuple(row.astype(np.float16) for row in logits_at(feature, (7, 9, 60_000), (10, 12, 65_000)))
    assert head.decode([span], [feature], [logits]) == ["홍길동"]


def test_logits_that_are_no_numbers_give_no_answer():
    head, span = make_head(), make_span("홍길동")
    (feature,) = head.encode([span])
    assert head.decode([span], [feature], [(np.full(NUM_TOKENS, np.nan),) * 2]) == [""]


@given(st.lists(st.floats(-9, 9), min_size=2 * NUM_TOKENS, max_size=2 * NUM_TOKENS), st.integers(1, 12))
def test_the_answer_is_that_of_trying_all_pairs(values, max_answer_length):
    head, span = make_head(max_answer_length=max_answer_length), make_span("홍길동")
    (feature,) = head.encode([span])
    logits = np.array(values).reshape(2, NUM_TOKENS)
    scores = {
        (first, last): logits[0, first] + logits[1, last]
        for first in range(7, 17)
        for last in range(first, min(17, first + max_answer_length))
    }
    offsets = feature["offsets"]
    best = {CONTEXT[offsets[a, 0] : offsets[b, 1]] for (a, b), x in scores.items() if x == max(scores.values())}
    assert head.decode([span], [feature], [tuple(logits)])[0] in best


def test_references_are_a_list_of_right_answers():
    assert make_head().references([make_span("홍길동"), make_span(".")]) == [["홍길동"], ["."]]
    assert make_head().references([make_span("홍길동")._replace(others=("길동",))]) == [["홍길동", "길동"]]


# real questions


@pytest.mark.parametrize("max_length", [512, 160])
@pytest.mark.parametrize("name", ["kcelectra_v2022_vocab.txt", "koelectra_v1_vocab.txt"])
def test_gold_spans_are_given_as_exactly_as_the_vocabulary_can(shared_data, name, max_length):
    tokenizer = load_tokenizer(shared_data / "vocab" / name)
    spans = read_spans(TASKS["korquad"], shared_data)[::10]
    head = SpansHead(tokenizer, max_length=max_length, stride=64)
    answers = decode_gold(head, spans)
    is_exact = [
        normalize_answer(one) == normalize_answer(span.answer) for one, span in zip(answers, spans, strict=True)
    ]
    assert is_exact == [measure_span_ceiling(tokenizer, [span]) == 1 for span in spans]
    assert 0.6 < sum(is_exact) / len(spans) < 0.9
    for answer, span in zip(answers, spans, strict=True):
        assert answer in span.context and span.answer.strip() in answer


# a model


def test_a_model_learns_the_answers_to_four_questions():
    spans = [make_span(answer) for answer in ("서울", "홍길동", "왔다")] + [make_span("서울은", context="서울은 왔다")]
    spans = [span._replace(question=f"{'누가 ' * number}?") for number, span in enumerate(spans)]
    head = make_head(max_length=32, max_question_length=16)
    features = head.encode(spans)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(TOKENIZER),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = head.auto_class.from_config(config)
    lengths = [len(feature["input_ids"]) for feature in features]
    batch = {
        key: torch.tensor([[*row[key], *[0] * (max(lengths) - len(row[key]))] for row in features])
        for key in ("input_ids", "token_type_ids")
    }
    batch |= {key: torch.tensor([row[key] for row in features]) for key in ("start_positions", "end_positions")}
    batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 10
    output = model.eval()(**batch)
    pairs = zip(output.start_logits.detach().numpy(), output.end_logits.detach().numpy(), lengths, strict=True)
    logits = [(first[:length], last[:length]) for first, last, length in pairs]
    assert head.decode(spans, features, logits) == ["서울", "홍길동", "왔다", "서울은"]


# errors


def test_a_row_needs_room_for_a_text():
    message = "max_length 67 has no room for a text beside a question of 64 tokens; give at least 68"
    with pytest.raises(InputError, match=message):
        make_head(max_length=67)
    assert make_head(max_length=68).encode([make_span("홍길동", question="누가 " * 99)])


def test_logits_of_other_rows_are_an_error():
    span = make_span("홍길동")
    with pytest.raises(ValueError):
        make_head().decode([span], make_head().encode([span]), [])
