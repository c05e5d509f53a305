"""Tagging words: every word of every sentence is counted once, whatever the tokenizer and the length of a row."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from transformers import ElectraConfig

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import TaggedWords, read_examples
from kcelectra.finetuning.tasks import TASKS
from kcelectra.finetuning.tokens import NOT_COUNTED, TokensHead, split_into_windows
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

LABELS = ("O", "PER-B", "PER-I", "LOC-B", "LOC-I")
PIECES = ["서울", "##에", "##서", "홍", "##길", "##동", "##이", "왔", "##다", ".", "[", "]", "SEP"]
NUM_ENTITIES = 29_413  # kcelectra.md, 2.3, as are those that are left when rows are cut to 48 pieces
NUM_KEPT = {
    "kcbert_vocab.txt": 27_291,
    "kcelectra_dev25000_vocab.txt": 27_161,
    "kcelectra_v2021_vocab.txt": 27_818,
    "kcelectra_v2022_vocab.txt": 27_892,
    "koelectra_v1_vocab.txt": None,
}
TOKENIZER = as_bert_tokenizer([*SPECIAL_TOKENS, *PIECES])
SENTENCE = TaggedWords(["홍길동이", "서울에서", "왔다."], ["PER-B", "LOC-B", "O"])


def make_head(max_length, *, tokenizer=TOKENIZER):
    return TokensHead(tokenizer, LABELS, max_length)


def as_logits(feature, *, labels=LABELS, elsewhere=0):
    """Return logits that say the labels where a word is counted, and `elsewhere` at other tokens."""
    ids = np.array(feature["labels"])
    return np.eye(len(labels), dtype=np.float32)[np.where(ids == NOT_COUNTED, elsewhere, ids)]


def tokens_of(feature):
    return TOKENIZER.convert_ids_to_tokens(feature["input_ids"])


def one_by_one(sentence):
    return [TaggedWords([word], [tag]) for word, tag in zip(sentence.words, sentence.tags, strict=True)]


# rows


def test_the_first_piece_of_a_word_carries_its_tag():
    (feature,) = make_head(20).encode([SENTENCE])
    assert tokens_of(feature) == "[CLS] 홍 ##길 ##동 ##이 서울 ##에 ##서 왔 ##다 . [SEP]".split()
    assert feature == {
        "input_ids": TOKENIZER(" ".join(SENTENCE.words))["input_ids"],
        "token_type_ids": [0] * 12,
        "labels": [-100, 1, -100, -100, -100, 3, -100, -100, 0, -100, -100, -100],
        "words": [-1, 0, -1, -1, -1, 1, -1, -1, 2, -1, -1, -1],
        "example": 0,
    }


def test_a_long_sentence_becomes_windows_that_repeat_words_without_counting_them():
    sentence = TaggedWords(["왔", "왔다", "왔다.", "왔", "서울에"], ["O", "PER-B", "PER-I", "O", "LOC-B"])
    features = make_head(8).encode([SENTENCE, sentence])[2:]
    assert [tokens_of(feature) for feature in features] == [
        "[CLS] 왔 왔 ##다 왔 ##다 . [SEP]".split(),
        "[CLS] 왔 서울 ##에 [SEP]".split(),
    ]
    assert [feature["words"] for feature in features] == [[-1, 0, 1, -1, 2, -1, -1, -1], [-1, 3, 4, -1, -1]]
    assert {feature["example"] for feature in features} == {1}
    longer = TaggedWords([*sentence.words, "왔"], [*sentence.tags, "PER-B"])
    (_, second) = make_head(9).encode([longer])
    assert tokens_of(second) == "[CLS] 왔 서울 ##에 왔 [SEP]".split()
    assert second["labels"] == [-100, -100, 3, -100, 1, -100]
    assert second["words"] == [-1, -1, 4, -1, 5, -1]


def test_a_word_longer_than_a_row_is_cut_and_counted():
    features = make_head(4).encode([TaggedWords(["왔", "홍길동이", "왔"], ["O", "PER-B", "PER-I"])])
    assert [tokens_of(feature)[1:-1] for feature in features] == [["왔"], ["홍", "##길"], ["왔"]]
    assert [feature["labels"][1] for feature in features] == [0, 1, 2]


@pytest.mark.parametrize("words", [["\x00"], ["\u200b", "\x01\x02"], [""], []])
def test_a_sentence_without_a_token_has_no_row_and_its_words_no_entity(words):
    head, sentence = make_head(8), TaggedWords(words, ["PER-B"] * len(words))
    assert head.encode([sentence]) == []
    assert head.decode([sentence, sentence], [], []) == [["O"] * len(words)] * 2


def test_a_word_without_a_token_has_no_entity_and_moves_no_other():
    sentence = TaggedWords(["\x00", "왔다", "", "\u200b", "서울", "\x01"], ["O", "PER-B", "O", "O", "LOC-B", "O"])
    head = make_head(20)
    features = head.encode([sentence])
    assert head.decode([sentence], features, list(map(as_logits, features))) == [sentence.tags]


def test_a_special_token_in_a_text_is_text():
    (feature,) = make_head(20).encode([TaggedWords(["[SEP]", "왔"], ["PER-B", "O"])])
    assert tokens_of(feature) == "[CLS] [ SEP ] 왔 [SEP]".split()


def test_examples_keep_their_order_beyond_one_part():
    sentences = [SENTENCE, TaggedWords(["왔다"], ["PER-B"])] * 1_200
    head = make_head(6)
    features = head.encode(sentences)
    assert [feature["example"] for feature in features] == [
        number for index in range(0, 2_400, 2) for number in (index, index, index, index + 1)
    ]
    assert head.decode(sentences, features, list(map(as_logits, features))) == head.references(sentences)


# windows


@given(st.lists(st.integers(0, 9)), st.integers(1, 12))
@example([0, 0, 3, 0, 3, 0], 3)
def test_every_word_is_one_windows_own_and_every_window_fits(sizes, room):
    sizes = [min(size, room) for size in sizes]
    windows = split_into_windows(sizes, room=room)
    assert [word for _, counted, end in windows for word in range(counted, end)] == list(range(len(sizes)))
    for start, counted, end in windows:
        assert 0 <= start <= counted < end
        assert sum(sizes[start:end]) <= room
        assert sum(sizes[start:counted]) <= room // 4


words = st.text(st.sampled_from("서울에홍길동왔다.A漢\x00\u200b👍"), min_size=1, max_size=9)
sentences = st.lists(st.tuples(words, st.sampled_from(LABELS)), max_size=15)


@given(st.lists(sentences, max_size=4), st.integers(3, 30))
def test_every_word_with_a_token_is_counted_once_whatever_the_length(pairs, max_length):
    examples = [TaggedWords([word for word, _ in pair], [tag for _, tag in pair]) for pair in pairs]
    head = make_head(max_length)
    features = head.encode(examples)
    counted = [(feature["example"], word) for feature in features for word in feature["words"] if word >= 0]
    has_token = {
        (index, number): bool(TOKENIZER.tokenize(word))
        for index, sentence in enumerate(examples)
        for number, word in enumerate(sentence.words)
    }
    assert counted == [key for key, has in has_token.items() if has]
    for feature in features:
        assert tokens_of(feature)[0] == "[CLS]" and tokens_of(feature)[-1] == "[SEP]"
        lengths = {len(feature[key]) for key in ("input_ids", "token_type_ids", "labels", "words")}
        assert lengths == {len(feature["input_ids"])} and max(lengths) <= max_length
        assert [label >= 0 for label in feature["labels"]] == [word >= 0 for word in feature["words"]]
    decoded = head.decode(examples, features, [as_logits(feature, elsewhere=1) for feature in features])
    assert decoded == [
        [tag if has_token[index, number] else "O" for number, tag in enumerate(sentence.tags)]
        for index, sentence in enumerate(examples)
    ]


@given(st.lists(words, min_size=1, max_size=9))
def test_the_pieces_are_those_of_each_word_alone(words):
    features = make_head(300).encode([TaggedWords(words, ["O"] * len(words))])
    pieces = [TOKENIZER.tokenize(word) for word in words]
    assert [tokens_of(feature)[1:-1] for feature in features] == [sum(pieces, [])] * any(pieces)
    for feature in features:
        firsts = {number: token for token, number in zip(tokens_of(feature), feature["words"], strict=True)}
        assert {number: token for number, token in firsts.items() if number >= 0} == {
            number: word[0] for number, word in enumerate(pieces) if word
        }


def test_a_byte_level_tokenizer_counts_every_word():
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["홍길동이 서울에서 왔다."] * 3, vocab_size=400, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")
    offsets = tokenizer.backend_tokenizer.encode(" ".join(SENTENCE.words)).offsets
    assert offsets == [(0, 4), (4, 9), (9, 12), (12, 13)]  # the blank before a word is in its first piece
    (feature,) = make_head(7, tokenizer=tokenizer).encode([SENTENCE])
    assert feature["words"] == [0, 1, 2, -1]
    head = make_head(1, tokenizer=tokenizer)
    features = head.encode([SENTENCE])
    assert [feature["words"] for feature in features] == [[0], [1], [2]]
    assert head.decode([SENTENCE], features, list(map(as_logits, features))) == [SENTENCE.tags]


# real sentences


@pytest.fixture(scope="module")
def naver_ner(shared_data):
    return list(read_examples(TASKS["naver-ner"], shared_data / "naver_ner" / "test.tsv"))


def count_entities(rows):
    return sum(len(get_entities(row, suffix=True)) for row in rows)


@pytest.mark.parametrize("name", NUM_KEPT)
def test_every_entity_of_naver_ner_is_scored_with_every_vocabulary(shared_data, naver_ner, name):
    labels = TASKS["naver-ner"].labels
    head = TokensHead(load_tokenizer(shared_data / "vocab" / name), labels, 50)
    features = head.encode(naver_ner)
    assert max(len(feature["input_ids"]) for feature in features) == 50
    logits = [as_logits(feature, labels=labels, elsewhere=1) for feature in features]
    decoded = head.decode(naver_ner, features, logits)
    assert decoded == head.references(naver_ner)
    assert count_entities(decoded) == NUM_ENTITIES


@pytest.mark.parametrize(("name", "num_kept"), [item for item in NUM_KEPT.items() if item[1]])
def test_as_many_entities_as_in_the_reference_begin_before_its_row_ends(shared_data, naver_ner, name, num_kept):
    head = TokensHead(load_tokenizer(shared_data / "vocab" / name), TASKS["naver-ner"].labels, 512)
    features = head.encode(naver_ner)
    assert len(features) == len(naver_ner)
    kept = [sum(word >= 0 for word in feature["words"][:49]) for feature in features]  # [CLS] and 48 pieces
    cut = [sentence.tags[:number] for sentence, number in zip(naver_ner, kept, strict=True)]
    assert count_entities(cut) == num_kept


# a model


def test_a_model_learns_the_tags_of_four_sentences():
    sentences = [SENTENCE, *one_by_one(SENTENCE)]
    head = make_head(8)
    features = head.encode(sentences)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(TOKENIZER),
        embedding_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=len(LABELS),
    )
    model = head.auto_class.from_config(config)
    lengths = [len(feature["input_ids"]) for feature in features]
    batch = {
        key: torch.tensor([[*row[key], *[padding] * (max(lengths) - len(row[key]))] for row in features])
        for key, padding in (("input_ids", 0), ("token_type_ids", 0), ("labels", NOT_COUNTED))
    }
    batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(25):
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0] / 10
    logits = [
        scores[:length] for scores, length in zip(model.eval()(**batch).logits.detach().numpy(), lengths, strict=True)
    ]
    assert head.decode(sentences, features, logits) == head.references(sentences)


# errors


def test_a_row_needs_room_for_a_word():
    with pytest.raises(InputError, match="max_length 2 has no room for a word; give at least 3"):
        make_head(2)


def test_logits_of_other_rows_are_an_error():
    features = make_head(20).encode([SENTENCE])
    with pytest.raises(ValueError):
        make_head(20).decode([SENTENCE], features, [])
    with pytest.raises(ValueError):
        make_head(20).decode([SENTENCE], features, [as_logits(features[0])[:-1]])


def test_a_slow_tokenizer_is_an_error(tmp_path):
    from transformers.models.bert_japanese.tokenization_bert_japanese import BertJapaneseTokenizer

    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *PIECES]), encoding="utf-8")
    slow = BertJapaneseTokenizer(str(path), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece")
    with pytest.raises(InputError, match="BertJapaneseTokenizer .* give a fast tokenizer"):
        make_head(8, tokenizer=slow).encode([SENTENCE])
