"""Counting words: what the library would count, exactly, whatever fits into memory."""

import gc
import random
import sys
import unicodedata
from collections import Counter
from functools import partial
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import example, given
from test_cleaning import TEXT, any_text, hostile_strings
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from kcelectra import clean_batch
from kcelectra.corpus.sample import generate_sample
from kcelectra.errors import InputError
from kcelectra.tokenization import words as words_module
from kcelectra.tokenization.words import WORD_BREAKS, WordCounts, count_words, iterate_codes

TEXTS = clean_batch(row["text"] for row in generate_sample())
NORMALIZER = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)
PRE_TOKENIZER = BertPreTokenizer()
count_all = partial(count_words, max_words=10**9)


def split_words(text: str) -> list[str]:
    """Split as the library does; lone surrogates, which it does not take, are deleted."""
    text = "".join(character for character in text if not "\ud800" <= character <= "\udfff")
    return [word for word, _ in PRE_TOKENIZER.pre_tokenize_str(NORMALIZER.normalize_str(text))]


def as_rows(words: WordCounts) -> list[tuple[str, int]]:
    return list(zip(words.words.to_pylist(), words.counts.to_pylist(), strict=True))


def rank(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))  # str compares code points


def characters_in(words: WordCounts) -> dict[str, int]:
    return {chr(code): int(words.characters[code]) for code in np.flatnonzero(words.characters)}


@any_text
@given(TEXT)
@example("\ud800가\udfff나 \udc00")
@example("a\x1fb\x1cc\x85d\u2028e\u180ef\ufeffg\x00h\ufffdi")
@example("漢字かな カナ、ㅋㅋ~ no.1!!\r\n\u3000café e\u0301 👨\u200d👩\u200d👧 1\ufe0f\u20e3")
def test_any_text_is_split_as_in_the_library(text):
    for whole in (text, f"가{text}나"):
        assert whole.translate(WORD_BREAKS).split() == split_words(whole)


@pytest.mark.parametrize("texts", [hostile_strings(5000), TEXTS, ["\ud800가\udfff나 \udc00", ""], []])
def test_words_and_characters_are_counted_as_one_by_one(texts):
    words, expected = count_all(iter(texts)), Counter(word for text in texts for word in split_words(text))
    assert as_rows(words) == [(word, count) for word, count in rank(expected) if len(word) <= 100]
    assert characters_in(words) == Counter("".join(expected.elements()))
    assert (words.num_texts, words.num_distinct) == (len(texts), len(expected))


def test_every_assigned_character_breaks_words_as_in_the_library():
    codes = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    texts = [f"a{chr(code)}b {chr(code)}c d{chr(code)} {chr(code)}{chr(code)}" for code in codes]
    for start in range(0, len(texts), 10_000):
        text = "\n".join(texts[start : start + 10_000])
        assert text.translate(WORD_BREAKS).split() == split_words(text)


def test_words_that_go_to_the_disk_are_counted_as_those_in_memory(monkeypatch):
    expected, parts = count_all(TEXTS), []
    write = words_module._write
    monkeypatch.setattr(words_module, "MAX_COUNTED", 100)
    monkeypatch.setattr(words_module, "TEXTS_AT_A_TIME", 50)
    monkeypatch.setattr(words_module, "_write", lambda *arguments: parts.append(arguments) or write(*arguments))
    spilled = count_all(TEXTS)
    assert len(parts) > 10
    assert as_rows(spilled) == as_rows(expected)
    assert np.array_equal(spilled.characters, expected.characters)
    assert (spilled.num_texts, spilled.num_distinct) == (expected.num_texts, expected.num_distinct)


def test_the_order_of_the_texts_does_not_matter(monkeypatch):
    expected = count_all(TEXTS)
    monkeypatch.setattr(words_module, "MAX_COUNTED", 500)
    monkeypatch.setattr(words_module, "TEXTS_AT_A_TIME", 300)
    assert as_rows(count_all(random.Random(0).sample(TEXTS, len(TEXTS)))) == as_rows(expected)


@pytest.mark.parametrize("max_words", [1, 2, 3, 4, 7])
def test_the_most_frequent_words_are_kept_and_ties_go_by_code_point(max_words):
    # U+FFE6 is below U+1F600, but above the surrogates that UTF-16 makes of it
    counts = {"나나": 3, "가": 2, "힣": 2, "￦￦": 2, "😀": 2, "a": 2, "漢": 1}
    texts = [word for word, count in counts.items() for _ in range(count)]
    words = count_words(reversed(texts), max_words=max_words)
    assert as_rows(words) == rank(Counter(texts))[:max_words]
    assert words.num_distinct == 7
    assert characters_in(words) == Counter("".join(texts))  # of the words that are not kept too


def test_a_word_that_every_tokenizer_makes_unk_of_is_counted_and_not_kept():
    longest = ["ㅋ" * 100, "😀" * 100, "é" * 100]  # in characters, of one to four bytes
    words = count_all([*longest, "ㅎ" * 101])
    assert sorted(words.words.to_pylist()) == sorted(longest)
    assert (words.num_distinct, characters_in(words)["ㅎ"]) == (4, 101)


def test_code_points_come_back_as_the_words_they_are_of(monkeypatch):
    monkeypatch.setattr(words_module, "WORDS_AT_A_TIME", 7)
    words, chunks = count_all(TEXTS[:200]), []
    for codes, word_of, counts in iterate_codes(words.words, words.counts):
        text = "".join(map(chr, codes)).split("\n")[:-1]
        assert ["".join(map(chr, codes[word_of == number]))[:-1] for number in range(len(counts))] == text
        chunks.append(list(zip(text, counts.tolist(), strict=True)))
    assert {len(chunk) for chunk in chunks[:-1]} == {7}
    assert sum(chunks, []) == as_rows(words)


class Text(str):
    """A text that is seen to be there; plain ones take no weak reference."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__


def test_no_more_than_a_batch_of_the_texts_is_held(monkeypatch):
    monkeypatch.setattr(words_module, "TEXTS_AT_A_TIME", 100)
    alive, most = WeakSet(), 0

    def generate():
        nonlocal most
        for number in range(3000):
            text = Text(f"댓글 {number}")
            alive.add(text)
            yield text
            most = max(most, len(alive))

    assert count_all(generate()).num_texts == 3000
    gc.collect()
    assert 100 <= most <= 201
    assert not alive


def test_a_disk_without_room_says_what_to_do(monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(words_module.pq, "write_table", fail)
    with pytest.raises(InputError, match="cannot count words in .*No space left on device; make room, or set TMPDIR"):
        count_all(["가"])


def test_the_memory_of_the_merge_is_shared_by_two_threads_on_any_machine(monkeypatch):
    given, connect = {}, words_module.duckdb.connect
    monkeypatch.setattr(words_module.duckdb, "connect", lambda config: given.update(config) or connect(config=config))
    assert count_all(["가 나 가"]).num_distinct == 2
    assert (given["threads"], given["preserve_insertion_order"]) == (2, False)


def test_too_little_memory_is_not_taken_for_a_full_disk(monkeypatch):
    monkeypatch.setattr(words_module, "MERGE_MEMORY", "1MiB")
    with pytest.raises(InputError, match=r"(?s)^cannot count words within 1MiB: .*; give a lower --sample$"):
        count_all(map(str, range(200_000)))


def test_an_error_of_the_texts_is_not_taken_for_a_full_disk():
    def generate():
        yield "가"
        raise ConnectionResetError("the peer went away")

    with pytest.raises(OSError, match="^the peer went away$"):
        count_all(generate())
