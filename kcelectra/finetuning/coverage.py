"""What a vocabulary makes of texts, before any model: how many tokens, what is lost, which answers it can point at."""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from kcelectra.corpus.cleaning import EMOJI
from kcelectra.finetuning.answers import normalize_answer
from kcelectra.finetuning.sources import Span

MAX_NAMED = 10  # words that become [UNK]
RUNS = {"emoji": re.compile(EMOJI), "jamo": re.compile("[ㄱ-ㅣ]{2,}")}
TEXTS_AT_A_TIME = 5_000


def measure_coverage(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, ...]], *, max_length: int
) -> dict[str, Any]:
    """Count what a tokenizer makes of texts as they are, not cleaned.

    Args:
        tokenizer: any that `transformers` loads.
        rows: one or two texts each.
        max_length: tokens of a row, special ones included.

    Returns:
        `num_rows`, `num_eojeols` (between white space), `num_tokens`; `tokens_per_eojeol`; the shares, 0 to 1,
        `unk_share` of tokens, `truncated_share` of rows, and of the `num_emoji` and `num_jamo` (runs of two or more)
        `emoji_whole` and `jamo_whole`, those that lie within one token; `unknown`, the words that most often become
        [UNK]. A share of nothing is None.
    """
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    backend = _backend(tokenizer)
    for start in range(0, len(rows), TEXTS_AT_A_TIME):
        part = rows[start : start + TEXTS_AT_A_TIME]
        texts = [text for row in part for text in row]
        encodings = iter(backend.encode_batch(texts, add_special_tokens=False))
        for row in part:
            num_tokens = 0
            for text in row:
                encoding = next(encodings)
                num_tokens += len(encoding.ids)
                _count(text, encoding.ids, encoding.offsets, tokenizer.unk_token_id, counts, unknown)
            counts["tokens"] += num_tokens
            counts["truncated"] += num_tokens + 1 + len(row) > max_length
    return {
        "num_rows": len(rows),
        "num_eojeols": counts["eojeols"],
        "num_tokens": counts["tokens"],
        "tokens_per_eojeol": _share(counts["tokens"], counts["eojeols"]),
        "unk_share": _share(counts["unk"], counts["tokens"]),
        "truncated_share": _share(counts["truncated"], len(rows)),
        **{f"num_{name}": counts[name] for name in RUNS},
        **{f"{name}_whole": _share(counts[f"{name} whole"], counts[name]) for name in RUNS},
        "unknown": dict(unknown.most_common(MAX_NAMED)),
    }


def measure_span_ceiling(tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span]) -> float:
    """Return the share of answers, 0 to 1, that an extractive model with this tokenizer can give exactly.

    An answer can be given if the tokens that cover it make the same text after the official normalisation: no exact
    match can be above this share.
    """
    num_exact = 0
    contexts = list(dict.fromkeys(span.context for span in spans))
    encodings = _backend(tokenizer).encode_batch(contexts, add_special_tokens=False)
    offsets = {context: encoding.offsets for context, encoding in zip(contexts, encodings, strict=True)}
    for span in spans:
        begins, ends = zip(*offsets[span.context], strict=True)
        first, last = bisect_right(ends, span.start), bisect_left(begins, span.start + len(span.answer)) - 1
        covering = span.context[begins[first] : ends[last]] if first <= last else ""
        num_exact += normalize_answer(covering) == normalize_answer(span.answer)
    return num_exact / max(1, len(spans))


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer within, without the truncation that a call of the outer one leaves behind."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _count(
    text: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    unk_token_id: int | None,
    counts: Counter[str],
    unknown: Counter[str],
) -> None:
    counts["eojeols"] += len(text.split())
    if unk_token_id in ids:
        lost = [text[start:end] for index, (start, end) in zip(ids, offsets, strict=True) if index == unk_token_id]
        counts["unk"] += len(lost)
        unknown.update(lost)
    for name, pattern in RUNS.items():
        for match in pattern.finditer(text):
            token = bisect_right(offsets, (match.start(), len(text))) - 1  # the last that begins there or before
            is_whole = token >= 0 and ids[token] != unk_token_id and offsets[token][1] >= match.end()
            counts[name] += 1
            counts[f"{name} whole"] += is_whole


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
