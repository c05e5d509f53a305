"""Rows and predictions as KoELECTRA and KcBERT-Finetune make them, for scores that compare with their tables."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.sources import Example, LabelledTexts, Span, TaggedWords
from kcelectra.finetuning.spans import N_BEST, SpansHead
from kcelectra.finetuning.tasks import Task
from kcelectra.finetuning.tokens import NOT_COUNTED, TEXTS_AT_A_TIME, TokensHead

NO_ANSWER = "empty"  # what the reference answers where no tokens will do
_WORD = re.compile(r"[^ \t\r\n\u202f]+")
_NORMALIZER, _PRE_TOKENIZER = BertNormalizer(strip_accents=False, lowercase=False), BertPreTokenizer()


class OriginalSequenceHead(SequenceHead):
    """Rows of texts: of a pair the longer is cut, and of equals the second, where `tokenizers` may cut the first.

    Source: KoELECTRA, `finetune/processor/seq_cls.py`; transformers 4, `PreTrainedTokenizer.truncate_sequences`.
    """

    def encode(self, examples: Sequence[LabelledTexts]) -> list[dict[str, Any]]:
        """Return a feature an example, as `SequenceHead` does."""
        pieces = _tokenize(self.tokenizer, chain.from_iterable(texts for texts, _ in examples))
        features = []
        for number, (texts, label) in enumerate(examples):
            sizes = [len(pieces[text]) for text in texts]
            while sum(sizes) > self.max_length - 1 - len(texts):
                sizes[0 if sizes[0] > sizes[-1] else -1] -= 1
            row = _join(self.tokenizer, *(pieces[text][:size] for text, size in zip(texts, sizes, strict=True)))
            features.append({**row, "labels": label, "example": number})
        return features


class OriginalTokensHead(TokensHead):
    """Rows of sentences, one each: words that do not fit are neither learnt nor scored.

    Source: KoELECTRA, `finetune/processor/ner.py` and `run_ner.py`.
    """

    def encode(self, examples: Sequence[TaggedWords]) -> list[dict[str, Any]]:
        """Return a feature a sentence, as `TokensHead` does; a word of which the tokenizer makes nothing is [UNK]."""
        pieces = _tokenize(self.tokenizer, chain.from_iterable(words for words, _ in examples))
        features = []
        for number, (words, tags) in enumerate(examples):
            ids = [pieces[word] or [self.tokenizer.unk_token_id] for word in words]
            places = [place for word, own in enumerate(ids) for place in [word] + [-1] * (len(own) - 1)]
            places = [-1, *places[: self.room], -1]
            labels = [self.labels.index(tags[place]) if place >= 0 else NOT_COUNTED for place in places]
            row = _join(self.tokenizer, list(chain.from_iterable(ids))[: self.room])
            features.append({**row, "labels": labels, "words": places, "example": number})
        return features

    def decode(
        self, examples: Sequence[TaggedWords], features: Sequence[dict[str, Any]], logits: Sequence[np.ndarray]
    ) -> list[list[str]]:
        """Return the tags of the words that are in the row of each sentence."""
        return _keep_words(super().decode(examples, features, logits), features)

    def references(self, examples: Sequence[TaggedWords]) -> list[list[str]]:
        """Return the true tags of the words that are in the row of each sentence."""
        return _keep_words(super().references(examples), self.encode(examples))


class OriginalSpansHead(SpansHead):
    """Rows of questions and windows of their texts, each `stride` tokens after the one before.

    Source: transformers 4, `data/processors/squad.py` and `data/metrics/squad_metrics.py`. Differs from the reference:
    a "[PAD]" in a text does not end it, and after a text of no tokens answers are not those of the next question.
    """

    def encode(self, examples: Sequence[Span]) -> list[dict[str, Any]]:
        """Return the windows of questions and their texts, in order.

        Returns:
            What `SpansHead` does, but for `offsets`: `words`, the number of the word that a token is of, -1 outside
            the text, and `begins`, if an answer may begin at it: where no other window has more on both sides of it;
            both (length,). The positions are of the answer's tokens if its words hold these, else of its words.
        """
        texts = ((span.question, span.answer, *_WORD.findall(span.context)) for span in examples)
        pieces = _tokenize(self.tokenizer, chain.from_iterable(texts))
        features = []
        for number, span in enumerate(examples):
            words = [pieces[word] for word in _WORD.findall(span.context)]
            answer = _find_tokens(words, _find_words(span), pieces[span.answer])
            question = pieces[span.question][: self.max_question_length]
            features += [{**row, "example": number} for row in self._cut_windows(question, words, answer)]
        return features

    def decode(
        self,
        examples: Sequence[Span],
        features: Sequence[dict[str, Any]],
        logits: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> list[str]:
        """Return the best answer to each question, cut at its tokens where their text is found in its words.

        Logits are (length,) or, as in the reference, (max_length,): the best of all of them are looked at, though they
        be of the question or of padding.
        """
        best = [(-np.inf, NO_ANSWER)] * len(examples)
        for feature, (first, last) in zip(features, logits, strict=True):
            score, start, end = self._best_tokens(feature, first, last)
            if score > best[feature["example"]][0]:
                words = _WORD.findall(examples[feature["example"]].context)
                words = words[feature["words"][start] : feature["words"][end] + 1]
                tokens = list(self.tokenizer.convert_ids_to_tokens(feature["input_ids"][start : end + 1]))
                best[feature["example"]] = (score, _find_text(tokens, " ".join(words)))
        return [text for _, text in best]

    def _cut_windows(
        self, question: list[int], words: list[list[int]], answer: tuple[int, int]
    ) -> Iterator[dict[str, Any]]:
        tokens = list(chain.from_iterable(words))
        word_of = np.repeat(np.arange(len(words), dtype=np.int32), [len(word) for word in words])
        shift, room = len(question) + 2, self.max_length - len(question) - 3
        if not tokens:
            return
        starts = range(0, max(len(tokens) - room + self.stride, 1), self.stride)
        windows = [(start, min(start + room, len(tokens))) for start in starts]
        owners = _find_owners(windows)
        for number, (start, end) in enumerate(windows):
            is_inside = start <= answer[0] and answer[1] < end
            first, last = (place - start + shift if is_inside else 0 for place in answer)
            yield {
                **_join(self.tokenizer, question, tokens[start:end]),
                "start_positions": first,
                "end_positions": last,
                "words": np.pad(word_of[start:end], (shift, 1), constant_values=-1),
                "begins": np.pad(owners[start:end] == number, (shift, 1)),
            }

    def _best_tokens(self, feature: dict[str, Any], first: np.ndarray, last: np.ndarray) -> tuple[float, int, int]:
        starts, ends = (
            [place for place in np.argsort(-scores, kind="stable")[:N_BEST] if place < len(allowed) and allowed[place]]
            for scores, allowed in ((first, feature["begins"]), (last, feature["words"] >= 0))
        )
        spans = (
            (float(first[start]) + float(last[end]), start, end)
            for start in starts
            for end in ends
            if start <= end < start + self.max_answer_length
        )
        return max(spans, key=itemgetter(0), default=(-np.inf, 0, 0))  # of equals the first, as there


def make_original_head(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> OriginalSequenceHead | OriginalTokensHead | OriginalSpansHead:
    """Return what makes rows of a task's examples, and reads predictions off logits, as the reference does.

    The reference tokenizes in Python. A fast tokenizer finds the same tokens in all official files that are at hand
    (measured with the vocabularies of v2021 and v2022 and transformers 4.17: 227,704 texts or pairs, 9,000 sentences,
    5,774 questions). A "[SEP]" in a text is the special token, as there.

    Raises:
        InputError: the tokenizer is none that the reference knows, or a row has no room for a text.
    """
    if not tokenizer.is_fast or not isinstance(tokenizer.backend_tokenizer.model, WordPiece):
        raise InputError(f"{type(tokenizer).__name__} is no fast WordPiece tokenizer; give --protocol strict")
    least = SpansHead.max_question_length + SpansHead.stride + 3 if task.head == "spans" else 4
    if max_length < least:
        raise InputError(
            f"max_length {max_length} has no room for a text of {task.name}; give --max_length {least} or more"
        )
    if task.head == "tokens":
        return OriginalTokensHead(tokenizer, task.labels or (), max_length)
    if task.head == "spans":
        return OriginalSpansHead(tokenizer, max_length)
    return OriginalSequenceHead(tokenizer, task.labels, max_length)


def keep_learnable(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that the reference trains on: of questions, those whose answer is in the words of its text.

    A no-break space in an answer counts as a space; between words of the text it counts as a letter.
    """
    return [example for example in examples if not isinstance(example, Span) or _find_words(example)]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, list[int]]:
    """Return the ids of each text alone."""
    unique = list(dict.fromkeys(texts))
    pieces: dict[str, list[int]] = {}
    for start in range(0, len(unique), TEXTS_AT_A_TIME):
        part = unique[start : start + TEXTS_AT_A_TIME]
        encoded = tokenizer(part, add_special_tokens=False, split_special_tokens=False, verbose=False)
        pieces.update(zip(part, encoded["input_ids"], strict=True))
    return pieces


def _join(tokenizer: PreTrainedTokenizerBase, *texts: list[int]) -> dict[str, Any]:
    ids, types = [tokenizer.cls_token_id], [0]
    for number, text in enumerate(texts):
        ids += [*text, tokenizer.sep_token_id]
        types += [number] * (len(text) + 1)
    return {"input_ids": ids, "token_type_ids": types}


def _keep_words(tags: list[list[str]], features: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [row[: max(feature["words"]) + 1] for row, feature in zip(tags, features, strict=True)]


def _find_words(span: Span) -> tuple[int, int] | None:
    """Return the first and the last word of an answer, or None if its text is not in them."""
    words = list(_WORD.finditer(span.context))
    starts = [word.start() for word in words]
    end = min(span.start + len(span.answer), len(span.context)) - 1
    first, last = (bisect_right(starts, place) - 1 for place in (span.start, end))
    is_found = " ".join(span.answer.split()) in " ".join(word[0] for word in words[first : last + 1])
    return (first, last) if is_found else None


def _find_tokens(words: list[list[int]], place: tuple[int, int] | None, answer: list[int]) -> tuple[int, int]:
    """Return the first and the last token of an answer: its own where its words hold them, else those of its words."""
    if place is None:
        return -1, -1
    before = sum(map(len, words[: place[0]]))
    tokens = list(chain.from_iterable(words[place[0] : place[1] + 1]))
    for start in range(len(tokens)):
        if answer and tokens[start : start + len(answer)] == answer:
            return before + start, before + start + len(answer) - 1
    return before, before + len(tokens) - 1


def _find_owners(windows: list[tuple[int, int]]) -> np.ndarray:
    """Return by token the window with most on both sides of it, where a longer one has a little more."""
    places = np.arange(windows[-1][1])
    sides = [np.minimum(places - start, end - 1 - places) + 0.01 * (end - start) for start, end in windows]
    is_inside = [(places >= start) & (places < end) for start, end in windows]
    return np.argmax(np.where(is_inside, sides, -np.inf), axis=0)


def _find_text(tokens: list[str], words: str) -> str:
    """Return the letters of words that are those of tokens, or all words where the tokens' text is not found in them.

    It is not found if it begins inside a word's piece, or holds [UNK]. It may be found too early.
    """
    text = " ".join(" ".join(tokens).replace(" ##", "").split())
    split = _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(words))
    whole = " ".join(word for word, _ in split)
    letters = [place for place, letter in enumerate(words) if letter != " "]
    start = whole.find(text)
    if start < 0 or len(letters) != len(whole.replace(" ", "")):
        return words
    first = len(whole[:start].replace(" ", ""))
    return words[letters[first] : letters[first + len(text.replace(" ", "")) - 1] + 1]
