"""What the page to try a model shows: a comment in, rows out."""

import unicodedata
from collections.abc import Collection
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import torch
from tokenizers import Encoding

from kcelectra.corpus.cleaning import RULE_SETS, clean
from kcelectra.release.demo_model import TriedModel

#: Of a comment that is looked at. Marking changes takes the cube of it at worst (measured: 2.6 s for 1,000).
MAX_CHARS = 500
MASKED_SHARE = 0.15  # of the tokens, where no words are chosen; Clark et al. 2020
NUM_PROPOSALS = 5
_INVISIBLE = ("Cc", "Cf", "Co", "Zl", "Zp")


class Change(NamedTuple):
    """A part of a comment; `kind` is kept, removed or added."""

    kind: str
    text: str


class Cleaned(NamedTuple):
    """What a rule set makes of a comment."""

    rules: str
    text: str
    changes: list[Change]


class Piece(NamedTuple):
    """A token, the part of the text that it stands for, and the number of its word, from 0."""

    token: str
    token_id: int
    text: str
    word: int
    is_unknown: bool


class Judged(NamedTuple):
    """A token, the probability, 0 to 1, that it was replaced, says the discriminator, and whether it was."""

    token: str
    probability: float
    is_replaced: bool = False

    @property
    def outcome(self) -> str:
        """`found`, `missed` or `false_alarm`; "" for an original that is taken for one."""
        is_called = self.probability > 0.5
        if self.is_replaced:
            return "found" if is_called else "missed"
        return "false_alarm" if is_called else ""


class Replacement(NamedTuple):
    """A hidden token, the one drawn in its place, and the most probable ones with their probabilities."""

    original: str
    drawn: str
    proposals: list[tuple[str, float]]


class Corruption(NamedTuple):
    """A text with tokens replaced by the generator, as the discriminator judges it."""

    replacements: list[Replacement]
    judged: list[Judged]


class Answer(NamedTuple):
    """What a classifier says: labels and their probabilities, 0 to 1; or the one number of a regression."""

    classifier: str
    scores: list[tuple[str, float]]
    is_number: bool


def cut_comment(comment: str) -> str:
    r"""Return the `MAX_CHARS` characters that are looked at; a lone half of a surrogate pair is replaced.

    >>> cut_comment("한" * 1_000_000) == "한" * MAX_CHARS
    True
    >>> cut_comment("\ud83d, \ud83d\ude00")  # as JSON from a browser may have it
    '�, 😀'
    """
    return comment[:MAX_CHARS].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def show_invisible(text: str) -> str:
    r"""Write characters that nobody would see as their code points.

    >>> show_invisible("빈\u200b칸\x1b[31m")
    '빈U+200B칸U+001B[31m'
    """
    is_hidden = {c: c != "\n" and unicodedata.category(c) in _INVISIBLE for c in text}
    return "".join(f"U+{ord(c):04X}" if is_hidden[c] else c for c in text)


def compare_rules(comment: str) -> list[Cleaned]:
    """Return what each rule set makes of a comment, and what it changes.

    >>> compare_rules("최고👍👍")[0].changes
    [Change(kind='kept', text='최고'), Change(kind='removed', text='👍👍')]
    """
    cleaned = [(rules, clean(comment, rules)) for rules in RULE_SETS if rules != "none"]
    return [Cleaned(rules, text, _find_changes(comment, text)) for rules, text in cleaned]


def split_pieces(model: TriedModel, text: str) -> list[Piece]:
    """Return the tokens of a text, without special ones; a "[SEP]" in it is text."""
    encoding = _encode(model, text)
    unknown = model.tokenizer.unk_token_id
    columns = zip(_name(model, encoding.ids), encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
    return [
        Piece(token, token_id, text[start:end], word, token_id == unknown)
        for token, token_id, (start, end), word in columns
        if word is not None
    ]


def is_cut(model: TriedModel, text: str) -> bool:
    """Tell whether a text has more tokens than the model reads."""
    return bool(_encode(model, text).overflowing)


def judge(model: TriedModel, text: str) -> list[Judged]:
    """Return each token of a text, and how probable it is that it was replaced."""
    encoding = _encode(model, text)
    ids = torch.tensor([encoding.ids])
    return _judge(model, encoding, ids, ids)


def corrupt(model: TriedModel, text: str, *, words: Collection[int] = (), seed: int = 0) -> Corruption:
    """Hide tokens, put what the generator draws in their place, and let the discriminator judge the result.

    Differs from pretraining: all chosen tokens are hidden; there, 15 % of them can be seen.

    Args:
        model: with a generator.
        text: to be corrupted.
        words: numbers of the words to hide, as `split_pieces` gives them; 15 % of the tokens, at least one, if empty.
        seed: of the choice and the draws.
    """
    encoding = _encode(model, text)
    ids = torch.tensor([encoding.ids])
    random = torch.Generator().manual_seed(seed)
    masked = _choose(encoding, words, random)
    if not masked:
        return Corruption([], _judge(model, encoding, ids, ids))
    probabilities = _propose(model, ids, masked)  # (K, V)
    drawn = torch.multinomial(probabilities, 1, generator=random)[:, 0]
    best = probabilities.topk(NUM_PROPOSALS)
    proposals = [
        list(zip(_name(model, top), shares, strict=True))
        for top, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    names = (_name(model, chosen.tolist()) for chosen in (ids[0, masked], drawn))
    replacements = [Replacement(*row) for row in zip(*names, proposals, strict=True)]
    return Corruption(replacements, _judge(model, encoding, ids, ids.index_copy(1, torch.tensor(masked), drawn[None])))


def classify(model: TriedModel, comment: str) -> list[Answer]:
    """Return what each classifier says of a comment as it is, the most probable label first."""
    answers = []
    for name, classifier in model.classifiers.items():
        scores: Any = classifier([comment], truncation=True, split_special_tokens=True)[0]
        is_number = classifier.model.config.num_labels == 1
        answers.append(Answer(name, [(score["label"], score["score"]) for score in scores], is_number))
    return answers


def _find_changes(before: str, after: str) -> list[Change]:
    changes = []
    for kind, start, end, new_start, new_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            changes.append(Change("kept", before[start:end]))
        else:
            parts = Change("removed", before[start:end]), Change("added", after[new_start:new_end])
            changes += [part for part in parts if part.text]
    return changes


def _encode(model: TriedModel, text: str) -> Encoding:
    encoded = model.tokenizer(text, truncation=True, max_length=model.max_length, split_special_tokens=True)
    return encoded.encodings[0]


def _name(model: TriedModel, ids: list[int]) -> list[str]:
    return [str(model.tokenizer.decode([token_id])) for token_id in ids]


def _choose(encoding: Encoding, words: Collection[int], random: torch.Generator) -> list[int]:
    inside = [position for position, word in enumerate(encoding.word_ids) if word is not None]
    if words:
        return [position for position in inside if encoding.word_ids[position] in words]
    order = torch.randperm(len(inside), generator=random).tolist()
    return sorted(inside[index] for index in order[: max(1, round(MASKED_SHARE * len(inside)))])


@torch.inference_mode()
def _propose(model: TriedModel, ids: torch.Tensor, masked: list[int]) -> torch.Tensor:
    """Return (masked, vocab), what the generator draws from: tokens that pretraining draws alone."""
    assert model.generator is not None
    tokenizer = model.tokenizer
    hidden = ids.index_fill(1, torch.tensor(masked), tokenizer.mask_token_id)
    logits = model.generator(hidden).logits[0, masked].float()
    never = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    logits[:, never] = -torch.inf
    logits[:, len(tokenizer) :] = -torch.inf  # rows of the table that no token has
    return logits.softmax(dim=-1)


@torch.inference_mode()
def _judge(model: TriedModel, encoding: Encoding, ids: torch.Tensor, corrupted: torch.Tensor) -> list[Judged]:
    probabilities = model.discriminator(corrupted).logits[0].sigmoid().tolist()
    judged = map(Judged, _name(model, corrupted[0].tolist()), probabilities, (corrupted != ids)[0].tolist())
    return [row for row, word in zip(judged, encoding.word_ids, strict=True) if word is not None]
