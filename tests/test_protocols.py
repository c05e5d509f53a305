"""The protocols of the published tables: rows, labels and answers against a plain transcription, and the numbers."""

import json
import math
import random
import re
import unicodedata
from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    Trainer,
    TrainingArguments,
)

from kcelectra.errors import InputError
from kcelectra.finetuning.original import keep_learnable, make_original_head
from kcelectra.finetuning.protocols import PROTOCOLS, Settings, find_protocol
from kcelectra.finetuning.runner import FinetuningArguments
from kcelectra.finetuning.sources import LabelledTexts, Span, TaggedWords, read_examples
from kcelectra.finetuning.tasks import TASKS
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

SEVEN = ("nsmc", "naver-ner", "paws", "kornli", "korsts", "question-pair", "korquad")
SEQUENCES = ("nsmc", "paws", "kornli", "korsts", "question-pair")
LENGTHS = {"nsmc": 50, "naver-ner": 50, "paws": 128, "kornli": 72, "korsts": 72, "question-pair": 72, "korquad": 512}
#: Rows of the official training files, the updates that the reference counts, and its checkpoints
#: (finetune_protocol.json). How many windows the training questions of KorQuAD become is not known.
OFFICIAL = {
    "nsmc": (150_000, 18_752, 9),
    "naver-ner": (81_000, 25_320, 25),
    "paws": (49_401, 23_160, 23),
    "kornli": (392_702, 30_680, 10),
    "korsts": (5_749, 1_800, 18),
    "question-pair": (6_136, 960, 9),
}
#: Gold entities of Naver NER that are left when rows are cut to 48 pieces (kcelectra.md, 2.3)
NUM_ENTITIES = {
    "kcelectra_v2021_vocab.txt": 27_818,
    "kcbert_vocab.txt": 27_291,
}
HOSTILE = [
    "",
    " ",
    "\x00\ufffd\u200b",
    "[SEP]",
    "가[SEP]나 [MASK]다",
    "[CLS][UNK] [sep]",
    "가" * 100,
    "가" * 101,
    "이" + "그" * 150 + " 영화",
    "漢字と가나、㐀\U00020000豈",
    "café e\u0301 Ünïcode ﬁ",
    "좋아요!!! $+<=>^`|~ 1,000.5%",
    "\u00a0가\u3000나\u202f다\u2028라",
    "영화\tㅋㅋㅋ\r\n진짜\x1c최고\x85다",
    "👍🏻👨\u200d👩\u200d👧 ❤\ufe0f",
    "ᄒᆞᆫ글 한글",
    "##가 ## ##",
    "“따옴표” ‘안’ 《책》 「글」…",
    "영화 진짜 재밌어요 " * 40,
]
TOKENIZER = as_bert_tokenizer([*SPECIAL_TOKENS, *"누 ##가 왔 ##다 ? 홍 ##길동 ##이 서울 ##에 ##서 ## . 어제".split()])


# the reference, in plain Python


class PlainTokenizer:
    """WordPiece as the tokenizers in Python have it: cased, accents kept, a Hanja alone, a special token anywhere."""

    HANJA = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF), (0xF900, 0xFAFF)]
    HANJA += [(0x2F800, 0x2FA1F)]

    def __init__(self, tokens):
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.tokenize = lru_cache(maxsize=100_000)(self.tokenize)

    def words(self, text):
        """Words, marks and Hanja of a text."""
        kept = []
        for letter in text:
            category = unicodedata.category(letter)
            if letter in "\t\n\r" or category == "Zs":
                kept.append(" ")
            elif letter != "\ufffd" and not category.startswith("C"):
                is_hanja = any(first <= ord(letter) <= last for first, last in self.HANJA)
                kept.append(f" {letter} " if is_hanja else letter)
        words = []
        for chunk in "".join(kept).split():
            is_new = True
            for letter in chunk:
                is_ascii_mark = 33 <= ord(letter) < 127 and not letter.isalnum()
                if is_ascii_mark or unicodedata.category(letter).startswith("P"):
                    words.append(letter)
                    is_new = True
                elif is_new:
                    words.append(letter)
                    is_new = False
                else:
                    words[-1] += letter
        return words

    def pieces(self, word):
        """The longest piece from the left, again and again; one [UNK] if anywhere there is none."""
        found, rest = [], word
        while rest and len(word) <= 100:
            candidates = (("##" if found else "") + rest[:size] for size in range(len(rest), 0, -1))
            piece = next((candidate for candidate in candidates if candidate in self.ids), None)
            if piece is None:
                break
            rest = rest[len(piece) - (2 if found else 0) :]
            found.append(piece)
        return ["[UNK]"] if rest else found

    def tokenize(self, text):
        tokens = []
        for part in re.split(r"(\[(?:PAD|UNK|CLS|SEP|MASK)\])", text):
            is_special = part in SPECIAL_TOKENS
            tokens += [part] if is_special else [piece for word in self.words(part) for piece in self.pieces(word)]
        return tokens

    def row(self, *texts, max_length):
        """Lists of tokens as a padded row: ids, token types, attention."""
        tokens, types = ["[CLS]"], [0]
        for number, text in enumerate(texts):
            tokens += [*text, "[SEP]"]
            types += [number] * (len(text) + 1)
        padding = [0] * (max_length - len(tokens))
        assert len(tokens) + len(padding) == max_length
        return ([self.ids[token] for token in tokens] + padding, types + padding, [1] * len(tokens) + padding)


def plain_row(plain, texts, max_length):
    pieces = [list(plain.tokenize(text)) for text in texts]
    room = max_length - len(texts) - 1
    while sum(map(len, pieces)) > room:
        if len(pieces) == 1 or len(pieces[0]) > len(pieces[1]):
            del pieces[0][-1]
        else:
            del pieces[1][-1]
    return plain.row(*pieces, max_length=max_length)


def plain_tagged_row(plain, words, tags, max_length):
    tokens, labels = [], []
    for word, tag in zip(words, tags, strict=True):
        for number, piece in enumerate(plain.tokenize(word) or ["[UNK]"]):
            tokens.append(piece)
            labels.append(-100 if number else tag)
    tokens, labels = tokens[: max_length - 2], labels[: max_length - 2]
    return (*plain.row(tokens, max_length=max_length), [-100, *labels] + [-100] * (max_length - 1 - len(labels)))


def plain_words(context):
    """The words of a text, and for each of its characters the number of the word that was last begun."""
    words, word_at, is_between = [], [], True
    for letter in context:
        if letter in " \t\r\n\u202f":
            is_between = True
        elif is_between:
            words.append(letter)
            is_between = False
        else:
            words[-1] += letter
        word_at.append(len(words) - 1)
    return words, word_at


def plain_answer(plain, span):
    """The words of an answer, and its first and last token, or None where the example is left out."""
    words, word_at = plain_words(span.context)
    first, last = word_at[span.start], word_at[min(span.start + len(span.answer), len(word_at)) - 1]
    if " ".join(span.answer.split()) not in " ".join(words[first : last + 1]):
        return None
    tokens = [piece for word in words for piece in plain.tokenize(word)]
    start = sum(len(plain.tokenize(word)) for word in words[:first])
    end = sum(len(plain.tokenize(word)) for word in words[: last + 1]) - 1
    wanted = " ".join(plain.tokenize(span.answer))
    for better_start in range(start, end + 1):
        for better_end in range(end, better_start - 1, -1):
            if " ".join(tokens[better_start : better_end + 1]) == wanted:
                return better_start, better_end
    return start, end


def plain_windows(plain, span, max_length):
    """Rows of a question with their labels, the word of each token, and which tokens have most on both sides here."""
    words, _ = plain_words(span.context)
    tokens = [(piece, number) for number, word in enumerate(words) for piece in plain.tokenize(word)]
    question = plain.tokenize(span.question)[:64]
    room = max_length - len(question) - 3
    parts, begin, rest = [], 0, tokens
    while begin < len(tokens):
        parts.append((begin, rest[:room]))
        if len(rest) <= room:
            break
        begin, rest = begin + 128, rest[128:]
    answer, shift = plain_answer(plain, span), len(question) + 2
    windows = []
    for begin, part in parts:
        label = (0, 0)
        if answer and begin <= answer[0] and answer[1] < begin + len(part):
            label = tuple(place - begin + shift for place in answer)
        most = set()
        for place in range(len(part)):
            scores = [
                min(begin + place - other, other + len(content) - 1 - begin - place) + 0.01 * len(content)
                if other <= begin + place < other + len(content)
                else -1
                for other, content in parts
            ]
            if parts[scores.index(max(scores))][0] == begin:
                most.add(place + shift)
        row = plain.row(question, [piece for piece, _ in part], max_length=max_length)
        windows.append((row, label, {place + shift: word for place, (_, word) in enumerate(part)}, most))
    return windows


def plain_prediction(plain, span, windows, logits):
    candidates = []
    for (row, _, word_of, most), (first, last) in zip(windows, logits, strict=True):
        starts, ends = (
            sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:20]
            for scores in (first.tolist(), last.tolist())
        )
        for start in starts:
            for end in ends:
                if start in most and end in word_of and start <= end <= start + 29:
                    candidates.append(
                        (float(first[start]) + float(last[end]), row[0][start : end + 1], word_of, start, end)
                    )
    if not candidates:
        return "empty"
    _, ids, word_of, start, end = max(candidates, key=lambda candidate: candidate[0])
    tokens = list(plain.ids)
    text = " ".join(" ".join(tokens[index] for index in ids).replace(" ##", "").split())
    words = " ".join(plain_words(span.context)[0][word_of[start] : word_of[end] + 1])
    spaced = " ".join(plain.words(words))
    at = spaced.find(text)
    here, there = ([place for place, letter in enumerate(string) if letter != " "] for string in (words, spaced))
    if at < 0 or len(here) != len(there):
        return words
    return words[here[there.index(at)] : here[there.index(at + len(text) - 1)] + 1]


# rows and answers


@pytest.fixture(scope="module")
def plain(tokenizer):
    return PlainTokenizer(tokens_by_id(tokenizer))


@pytest.fixture(scope="module")
def texts(sample_comments):
    return HOSTILE + [comment["text"] for comment in sample_comments]


@cache
def published(path):
    tokenizer = load_tokenizer(path)
    return tokenizer, PlainTokenizer(tokens_by_id(tokenizer))


@cache
def examples_of(name, path):
    return list(read_examples(TASKS[name], path))


def padded(tokenizer, features, max_length, *, labels=False):
    """Rows as a batch has them that is padded to `max_length`."""
    kind = DataCollatorForTokenClassification if labels else DataCollatorWithPadding
    keys = ["input_ids", "token_type_ids", *(["labels"] if labels else [])]
    collate = kind(tokenizer, padding="max_length", max_length=max_length)
    batch = collate([{key: feature[key] for key in keys} for feature in features])
    return list(zip(*(batch[key].tolist() for key in [*keys[:2], "attention_mask", *keys[2:]]), strict=True))


def assert_texts_are_the_same(task, tokenizer, plain, examples, max_length):
    features = make_original_head(task, tokenizer, max_length=max_length).encode(examples)
    rows = [plain_row(plain, example.texts, max_length) for example in examples]
    assert padded(tokenizer, features, max_length) == rows
    assert [feature["labels"] for feature in features] == [example.label for example in examples]


def assert_sentences_are_the_same(task, tokenizer, plain, examples, max_length):
    features = make_original_head(task, tokenizer, max_length=max_length).encode(examples)
    ids = [[task.labels.index(tag) for tag in example.tags] for example in examples]
    rows = [plain_tagged_row(plain, words, tags, max_length) for (words, _), tags in zip(examples, ids, strict=True)]
    assert padded(tokenizer, features, max_length, labels=True) == rows


def assert_questions_are_the_same(task, tokenizer, plain, spans, max_length):
    head = make_original_head(task, tokenizer, max_length=max_length)
    features = head.encode(spans)
    by_span = [plain_windows(plain, span, max_length) for span in spans]
    windows = [(number, window) for number, group in enumerate(by_span) for window in group]
    assert padded(tokenizer, features, max_length) == [row for _, (row, *_) in windows]
    labels = [(feature["start_positions"], feature["end_positions"], feature["example"]) for feature in features]
    assert labels == [(*label, number) for number, (_, label, *_) in windows]
    for feature, (_, (*_, word_of, most)) in zip(features, windows, strict=True):
        assert feature["words"].tolist() == [word_of.get(place, -1) for place in range(len(feature["input_ids"]))]
        assert np.flatnonzero(feature["begins"]).tolist() == sorted(most)
    random_logits = np.random.default_rng(0)
    logits = []
    for feature in features:
        pair = random_logits.normal(size=(2, max_length)).astype(np.float32)
        inside = np.flatnonzero(feature["words"] >= 0)
        for start in random_logits.choice(inside, 4):
            pair[0, start] += 3
            pair[1, min(start + random_logits.integers(4), inside[-1])] += 3
        logits.append(tuple(pair))
    predictions = head.decode(spans, features, logits)
    by_window = iter(logits)
    for span, group, prediction in zip(spans, by_span, predictions, strict=True):
        assert prediction == plain_prediction(plain, span, group, [next(by_window) for _ in group])


def ask(texts, rng, number):
    """Questions on texts of several comments; their answers begin and end anywhere."""
    for _ in range(number):
        context = " ".join(rng.choices(texts, k=rng.choice([1, 20, 60]))) + "."
        start = rng.randrange(len(context))
        yield Span(
            " ".join(rng.choices(texts, k=rng.choice([1, 8]))),
            context,
            start,
            context[start : start + rng.randint(1, 40)],
        )


@pytest.mark.parametrize("max_length", [4, 5, 50])
def test_texts_alone_and_in_pairs_are_the_rows_of_the_reference(tokenizer, plain, texts, max_length):
    alone = [LabelledTexts((text,), number % 2) for number, text in enumerate(texts)]
    assert_texts_are_the_same(TASKS["nsmc"], tokenizer, plain, alone, max_length)
    rng = random.Random(0)
    pairs = [(first, second) for first in HOSTILE for second in HOSTILE]
    pairs += [tuple(rng.choices(texts, k=2)) for _ in range(300)]
    assert_texts_are_the_same(
        TASKS["korsts"], tokenizer, plain, [LabelledTexts(pair, 2.5) for pair in pairs], max_length
    )


def test_of_a_pair_of_equals_the_second_is_cut():
    head = make_original_head(TASKS["paws"], TOKENIZER, max_length=8)
    (feature,) = head.encode([LabelledTexts(("누가왔다", "누 왔 누 왔"), 1)])
    assert TOKENIZER.convert_ids_to_tokens(feature["input_ids"]) == "[CLS] [UNK] [SEP] 누 왔 누 왔 [SEP]".split()
    (feature,) = head.encode([LabelledTexts(("왔 왔 왔 왔", "누 누 누 누 누 누"), 1)])
    assert TOKENIZER.convert_ids_to_tokens(feature["input_ids"]) == "[CLS] 왔 왔 왔 [SEP] 누 누 [SEP]".split()
    assert feature["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("max_length", [4, 50])
def test_sentences_are_the_rows_of_the_reference(tokenizer, plain, texts, max_length):
    rng = random.Random(0)
    task = TASKS["naver-ner"]
    sentences = [[], ["\x00"], ["[SEP]", "가[SEP]", "\u200b", "x"], *(text.split() for text in texts)]
    examples = [TaggedWords(words, rng.choices(task.labels, k=len(words))) for words in sentences]
    assert_sentences_are_the_same(task, tokenizer, plain, examples, max_length)


def test_words_beyond_a_row_have_neither_a_tag_nor_a_reference():
    task = TASKS["naver-ner"]
    head = make_original_head(task, TOKENIZER, max_length=6)
    examples = [
        TaggedWords(["홍길동이", "서울에서", "왔다"], ["PER-B", "LOC-B", "O"]),
        TaggedWords(["왔", "왔", "서울", "홍", "왔"], ["O", "O", "LOC-B", "PER-B", "O"]),
        TaggedWords([], []),
    ]
    features = head.encode(examples)
    assert head.references(examples) == [["PER-B", "LOC-B"], ["O", "O", "LOC-B", "PER-B"], []]
    logits = [np.eye(len(task.labels))[np.maximum(feature["labels"], 0)] for feature in features]
    assert head.decode(examples, features, logits) == head.references(examples)


@pytest.mark.parametrize("max_length", [195, 300])
def test_questions_are_the_rows_and_the_answers_of_the_reference(tokenizer, plain, texts, max_length):
    rng = random.Random(0)
    spans = list(ask(texts, rng, 100))
    assert_questions_are_the_same(TASKS["korquad"], tokenizer, plain, spans, max_length)
    assert any(len(plain_windows(plain, span, max_length)) > 2 for span in spans)


def question(context, answer):
    return Span("누가 왔다?", context, context.index(answer), answer)


def test_windows_begin_and_end_where_those_of_the_reference_do():
    plain = PlainTokenizer(tokens_by_id(TOKENIZER))
    for max_length, sizes in ((195, (1, 128, 186, 187, 188, 189, 315, 316, 443, 444)), (200, (192, 193, 320, 321))):
        spans = [question("왔 " * size, "왔") for size in sizes]
        assert_questions_are_the_same(TASKS["korquad"], TOKENIZER, plain, spans, max_length)
    assert [len(plain_windows(plain, question("왔 " * size, "왔"), 195)) for size in (187, 188, 315, 316)] == [
        1,
        2,
        2,
        3,
    ]


def encode_question(span):
    """The head, and the one row of a span; its text begins at token 7."""
    head = make_original_head(TASKS["korquad"], TOKENIZER, max_length=195)
    (feature,) = head.encode([span])
    return head, feature


def answer_at(span, first, last):
    """The answer where the model points at a first and a last token, counted from the first of the text."""
    head, feature = encode_question(span)
    logits = np.zeros((2, len(feature["input_ids"])))
    logits[0, first + 7] = logits[1, last + 7] = 9
    return head.decode([span], [feature], [tuple(logits)])[0]


def test_an_answer_is_cut_at_its_tokens_unless_it_begins_inside_a_word():
    span = question("어제 홍길동이 서울에서 왔다.", "홍길동")  # 어제 홍 ##길동 ##이 서울 ##에 ##서 왔 ##다 .
    _, feature = encode_question(span)
    assert (feature["start_positions"], feature["end_positions"]) == (8, 9)
    assert [answer_at(span, 1, last) for last in (2, 3, 4)] == ["홍길동", "홍길동이", "홍길동이 서울"]
    assert [answer_at(span, 2, last) for last in (2, 4)] == ["홍길동이", "홍길동이 서울에서"]
    assert answer_at(span, 8, 9) == "왔다."
    assert answer_at(question("서울은 홍길동이 왔다", "홍"), 0, 0) == "서울은"  # [UNK]


def test_of_an_answer_that_stands_twice_in_its_words_the_first_is_learnt_and_given():
    span = Span("누가 왔다?", "왔.왔. 왔.", 2, "왔")  # 왔 . 왔 . 왔 .
    _, feature = encode_question(span)
    assert (feature["start_positions"], feature["end_positions"]) == (7, 7)
    assert answer_at(span, 2, 5) == "왔.왔."


def test_of_answers_that_are_as_likely_the_first_is_given():
    span = question("홍길동이 " + "왔 " * 190 + "서울", "홍길동")
    head = make_original_head(TASKS["korquad"], TOKENIZER, max_length=195)
    features = head.encode([span])
    logits = [np.zeros((2, len(feature["input_ids"]))) for feature in features]
    for places, (first, last) in zip(
        ([7, 9], [-3, -2]), logits, strict=True
    ):  # 홍 ##이, and in the last window 왔 서울
        first[places] = last[places] = 9
    assert head.decode([span], features, list(map(tuple, logits))) == ["홍"]
    assert head.decode([span], features[1:], [tuple(logits[1])]) == ["왔"]
    logits[0][:, [7, 9]] = [8, 9], [8, 7]  # 홍 alone and ##이 alone, which is the likelier first token
    assert head.decode([span], features[:1], [tuple(logits[0])]) == ["홍길동이"]


def test_a_question_on_a_text_without_tokens_is_answered_as_the_reference_does():
    spans = [question("\u200b", "\u200b"), question("홍길동이 왔다", "홍길동")]
    head = make_original_head(TASKS["korquad"], TOKENIZER, max_length=195)
    features = head.encode(spans)
    logits = [np.zeros((2, len(feature["input_ids"]))) for feature in features]
    assert [feature["example"] for feature in features] == [1]
    assert head.decode(spans, features, logits)[0] == "empty"


def test_what_the_reference_cannot_find_is_not_learnt_and_still_answered():
    context = "어제\u00a0홍길동이 왔다"
    unfound, found = question(context, "어제\u00a0홍길동"), question(context, "홍길동이 왔")
    assert keep_learnable([unfound, found]) == [found]
    others = [LabelledTexts(("",), 0), TaggedWords([], [])]
    assert keep_learnable(others) == others
    _, feature = encode_question(unfound)
    assert (feature["start_positions"], feature["end_positions"]) == (0, 0)
    assert answer_at(unfound, 1, 3) == "어제\u00a0홍길동이"


@pytest.mark.parametrize("vocab", ["kcelectra_v2021_vocab.txt", "kcelectra_v2022_vocab.txt"])
@pytest.mark.parametrize("name", SEVEN)
def test_published_files_are_the_rows_of_the_reference(shared_data, name, vocab):
    tokenizer, plain = published(shared_data / "vocab" / vocab)
    task = TASKS[name]
    files = [task.files[split][0] for split in ("train", "test")]
    path = next(path for path in (shared_data / task.directory / file for file in files) if path.exists())
    examples = examples_of(name, path)[:100] + examples_of(name, path)[-100:]
    same = {"sequence": assert_texts_are_the_same, "tokens": assert_sentences_are_the_same}
    same.get(task.head, assert_questions_are_the_same)(task, tokenizer, plain, examples, LENGTHS[name])


@pytest.mark.parametrize("vocab", NUM_ENTITIES)
def test_the_entities_that_are_scored_are_those_of_the_reference(shared_data, vocab):
    task = TASKS["naver-ner"]
    head = make_original_head(task, published(shared_data / "vocab" / vocab)[0], max_length=50)
    references = head.references(examples_of("naver-ner", shared_data / task.test_file))
    assert sum(len(get_entities(tags, suffix=True)) for tags in references) == NUM_ENTITIES[vocab]


# numbers


def test_the_default_protocol_is_ours_and_is_of_every_task_as_it_is():
    strict = PROTOCOLS["strict"]
    assert (strict.selected_on, strict.seeds, strict.warmup, strict.is_original) == (
        "dev",
        (0, 1, 2, 3, 4),
        0.1,
        False,
    )
    for task in TASKS.values():
        given = (task.max_length, task.batch_size, task.num_epochs, task.learning_rate)
        assert strict.settle(task) == Settings(*given, warmup=0.1)


@pytest.mark.parametrize("name", ["kcbert-finetune", "koelectra-v3"])
def test_the_published_protocols_have_one_seed_and_choose_on_test(name):
    protocol = find_protocol(name)
    assert (protocol.selected_on, protocol.seeds, protocol.warmup, protocol.is_original) == ("test", (42,), 0.0, True)


def test_a_number_of_epochs_that_is_given_is_recorded_as_the_one_that_is_not():
    task, strict = TASKS["nsmc"], PROTOCOLS["strict"]
    own = FinetuningArguments().settle(task, strict).record()
    assert json.dumps(FinetuningArguments(num_epochs=8.0).settle(task, strict).record()) == json.dumps(own)
    assert FinetuningArguments(num_epochs=0.5).settle(task, strict).num_epochs == 0.5


def settled(protocol):
    """Max length, batch, epochs, learning rate, epsilon, steps between evaluations and first step, by task."""
    protocol = PROTOCOLS[protocol]
    settings = {name: protocol.settle(TASKS[name]) for name in protocol.changes}
    return {
        name: (x.max_length, x.batch_size, x.num_epochs, x.learning_rate, x.adam_epsilon, x.eval_steps, x.first_step)
        for name, x in settings.items()
    }


def test_the_numbers_are_those_of_the_configurations():
    assert settled("kcbert-finetune") == {
        "nsmc": (50, 64, 8, 5e-5, 1e-8, 2000, 0),
        "naver-ner": (50, 64, 20, 8e-5, 1e-8, 1000, 0),
        "paws": (128, 32, 15, 3e-5, 1e-7, 1000, 0),
        "kornli": (72, 128, 10, 3e-5, 1e-8, 3000, 0),
        "korsts": (72, 32, 10, 5e-5, 1e-8, 100, 0),
        "question-pair": (72, 32, 5, 5e-5, 1e-8, 100, 0),
        "korquad": (512, 16, 5, 5e-5, 1e-8, 2000, 1),
    }
    assert settled("koelectra-v3") == {
        "nsmc": (128, 32, 10, 5e-5, 1e-8, 2000, 0),
        "naver-ner": (128, 32, 20, 5e-5, 1e-8, 1000, 0),
        "paws": (128, 32, 15, 3e-5, 1e-8, 1000, 0),
        "kornli": (128, 64, 15, 5e-5, 1e-8, 3000, 0),
        "korsts": (128, 32, 10, 5e-5, 1e-8, 100, 0),
        "question-pair": (128, 32, 10, 5e-5, 1e-8, 100, 0),
        "korquad": (512, 8, 7, 5e-5, 1e-8, 1000, 1),
        "beep": (128, 32, 10, 5e-5, 1e-8, 100, 0),
    }


def test_the_numbers_are_those_of_the_record(shared_data):
    record = json.loads((shared_data.parent / "reference/finetune_protocol.json").read_text())
    names = {
        "max_length": ("max_seq_len", "max_seq_length"),
        "batch_size": ("train_batch_size",),
        "num_epochs": ("num_train_epochs",),
        "learning_rate": ("learning_rate",),
        "adam_epsilon": ("adam_epsilon",),
        "eval_steps": ("logging_steps", "save_steps"),
        "first_step": ("global_step_starts_at",),
    }
    for protocol, tasks in (
        ("kcbert-finetune", record["tasks"]),
        ("koelectra-v3", record["koelectra_v3_protocol"]),
    ):
        tasks = {name.replace("hate-speech", "beep"): numbers for name, numbers in tasks.items() if name != "note"}
        assert tasks.keys() == PROTOCOLS[protocol].changes.keys()
        for task, numbers in tasks.items():
            settings = PROTOCOLS[protocol].settle(TASKS[task])
            for name, theirs in names.items():
                assert {numbers[key] for key in theirs if key in numbers} <= {getattr(settings, name)}
    common = record["common"]
    assert (common["warmup_steps"], common["seed"], common["max_grad_norm"]) == (
        0,
        42,
        TrainingArguments().max_grad_norm,
    )


@pytest.mark.parametrize("task", OFFICIAL)
def test_updates_and_evaluations_are_as_many_as_in_the_reference(task):
    num_rows, num_updates, num_evaluations = OFFICIAL[task]
    settings = PROTOCOLS["kcbert-finetune"].settle(TASKS[task])
    num_per_epoch = len(DataLoader(range(num_rows), batch_size=settings.batch_size))
    assert num_per_epoch * settings.num_epochs == num_updates
    evaluated = settings.evaluated_after(num_updates, num_per_epoch=num_per_epoch)
    assert len(evaluated) == num_evaluations
    assert evaluated[:2] == [settings.eval_steps, 2 * settings.eval_steps]


def test_questions_are_evaluated_an_update_early_and_ours_after_each_epoch():
    korquad = PROTOCOLS["kcbert-finetune"].settle(TASKS["korquad"])
    assert korquad.evaluated_after(5999, num_per_epoch=1200) == [1999, 3999, 5999]
    assert korquad.evaluated_after(1998, num_per_epoch=400) == []
    strict = PROTOCOLS["strict"].settle(TASKS["korquad"])
    assert strict.evaluated_after(25, num_per_epoch=10) == [10, 20, 25]
    assert strict.evaluated_after(20, num_per_epoch=10) == [10, 20]


def test_what_a_protocol_is_not_of_is_named_with_what_to_type():
    for protocol, task in (("kcbert-finetune", "beep"), ("koelectra-v3", "unsmile")):
        with pytest.raises(InputError, match=f"{protocol} was never used for {task}; give --protocol strict, or one"):
            PROTOCOLS[protocol].settle(TASKS[task])
    with pytest.raises(
        InputError, match="unknown protocol 'kcbert'; use one of strict, kcbert-finetune, koelectra-v3"
    ):
        find_protocol("kcbert")


def test_rows_that_the_reference_has_not_are_named_with_what_to_type(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from transformers.models.bert_japanese.tokenization_bert_japanese import BertJapaneseTokenizer

    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(SPECIAL_TOKENS), encoding="utf-8")
    slow = BertJapaneseTokenizer(str(path), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece")
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
    for tokenizer in (slow, other):
        with pytest.raises(InputError, match="is no fast WordPiece tokenizer; give --protocol strict"):
            make_original_head(TASKS["nsmc"], tokenizer, max_length=50)
    for task, least in (("korquad", 195), ("nsmc", 4), ("naver-ner", 4)):
        assert make_original_head(TASKS[task], TOKENIZER, max_length=least).encode([]) == []
        with pytest.raises(
            InputError, match=f"max_length {least - 1} has no room .* give --max_length {least} or more"
        ):
            make_original_head(TASKS[task], TOKENIZER, max_length=least - 1)


# the optimizer


def make_trainer(kind, settings, directory):
    config = ElectraConfig(vocab_size=20, embedding_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    config.num_attention_heads = 2
    arguments = TrainingArguments(
        str(directory),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        adam_epsilon=settings.adam_epsilon,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        report_to="none",
    )
    return Trainer(model=kind(config), args=arguments, train_dataset=[{"input_ids": [2, 3]}])


@pytest.mark.parametrize(
    "kind", [ElectraForSequenceClassification, ElectraForTokenClassification, ElectraForQuestionAnswering]
)
def test_parameters_are_grouped_as_in_the_reference_and_none_decays(kind, tmp_path):
    trainer = make_trainer(kind, PROTOCOLS["kcbert-finetune"].settle(TASKS["paws"]), tmp_path)
    decayed, others = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    is_kept = {name: any(part in name for part in ("bias", "LayerNorm.weight")) for name in names.values()}
    assert [names[id(parameter)] for parameter in decayed["params"]] == [
        name for name, kept in is_kept.items() if not kept
    ]
    assert [names[id(parameter)] for parameter in others["params"]] == [name for name, kept in is_kept.items() if kept]
    for group in (decayed, others):
        assert (group["weight_decay"], group["betas"], group["eps"]) == (0.0, (0.9, 0.999), 1e-7)


def test_the_learning_rate_falls_in_a_line_from_the_first_update(tmp_path):
    settings = PROTOCOLS["kcbert-finetune"].settle(TASKS["korsts"])
    num_updates = OFFICIAL["korsts"][1]
    trainer = make_trainer(ElectraForSequenceClassification, settings, tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=num_updates)
    rates = []
    for _ in range(num_updates + 1):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    for step in range(0, num_updates + 1, num_updates // 9):
        assert rates[step] == pytest.approx(settings.learning_rate * (1 - step / num_updates), rel=1e-9, abs=1e-20)


def test_torch_adds_epsilon_after_the_correction_and_the_reference_before():
    """What `PROTOCOLS` says of it: with an epsilon that falls from 32-fold, torch takes the reference's steps."""
    epsilon, rate = 1e-3, 0.1
    ours, theirs = torch.nn.Parameter(torch.zeros(3)), torch.zeros(3)
    optimizer = torch.optim.AdamW([ours], lr=rate, eps=epsilon, weight_decay=0.0)
    mean, square = torch.zeros(3), torch.zeros(3)
    for step in range(1, 6):
        ours.grad = torch.tensor([1e-4, 1e-3, -1e-2]) * step
        mean, square = 0.9 * mean + 0.1 * ours.grad, 0.999 * square + 0.001 * ours.grad**2
        theirs -= rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * mean / (square.sqrt() + epsilon)
        optimizer.param_groups[0]["eps"] = epsilon / math.sqrt(1 - 0.999**step)
        optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs)
    assert [round(1 / math.sqrt(1 - 0.999**step), 1) for step in (1, 1000)] == [31.6, 1.3]
