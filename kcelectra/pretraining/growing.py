"""Add tokens to a tokenizer and to both halves of a joint model."""

from collections.abc import Iterable, Sequence

import torch
from transformers import BertTokenizer, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.pretraining.embeddings import DisentangledEmbedding
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.tokenization.loading import as_bert_tokenizer, check_pairing, tokens_by_id
from kcelectra.tokenization.vocabulary import UNUSED
from kcelectra.tokenization.words import WORD_BREAKS


@torch.no_grad()
def grow_vocabulary(
    model: KcElectraForPreTraining, tokenizer: PreTrainedTokenizerBase, new_tokens: Iterable[str]
) -> BertTokenizer:
    """Add tokens to a vocabulary, and to a model that then is a little better than one that has never seen them.

    They take the place of `[unusedN]` first, and are appended when those are used up. They are pieces like the others:
    found at the beginning of a word, or with `##` within one, and never across it. (`tokenizer.add_tokens` would cut
    them out of the middle of other words.) Each starts from the mean of the pieces that it was made of before: so does
    its row of the embeddings, which the halves share, and its bias in the generator's output.

    Args:
        model: changed in place; the configurations of both halves follow.
        tokenizer: of the model, WordPiece; not changed.
        new_tokens: such as `"존잼"` or `"##잼"`; those that are there already are left out.

    Returns:
        The longer tokenizer.

    Raises:
        InputError: the tokenizer is not the model's, a token could never be found in a text, or none is new.
    """
    check_pairing(tokenizer, model.config.discriminator_config)
    tokens = tokens_by_id(tokenizer)
    known = {token: index for index, token in enumerate(tokens)}
    added = [token for token in dict.fromkeys(new_tokens) if token not in known]
    _require_words(added)
    pieces = [_split(token, known) or [tokenizer.unk_token_id] for token in added]
    slots = [index for index, token in enumerate(tokens) if UNUSED.fullmatch(token)]
    slots += range(len(tokens), len(tokens) + len(added))
    ids = slots[: len(added)]
    tokens += [""] * (max(ids) + 1 - len(tokens))
    for index, token in zip(ids, added, strict=True):
        tokens[index] = token
    means = [_means(table, pieces) for table in _tables(model)]
    if len(tokens) > model.config.discriminator_config.vocab_size:
        model.resize_token_embeddings(len(tokens), mean_resizing=False)
    for table, rows in zip(_tables(model), means, strict=True):
        table[ids] = rows
    unsampled = model.config.unsampled_token_ids  # rows to spare among them, which are tokens now
    model.config.unsampled_token_ids = [index for index in unsampled if index not in ids]
    return as_bert_tokenizer(tokens)


def _tables(model: KcElectraForPreTraining) -> list[torch.Tensor]:
    """Return what has a row a token: the shared embeddings, (vocab, embedding), and the output's bias, (vocab,).

    And what the discriminator adds to the embeddings, if it does.
    """
    words = model.discriminator.electra.embeddings.word_embeddings
    tables = [model.get_input_embeddings().weight.data, model.generator.generator_lm_head.bias.data]
    return [*tables, words.delta.weight.data] if isinstance(words, DisentangledEmbedding) else tables


def _means(table: torch.Tensor, pieces: Sequence[list[int]]) -> torch.Tensor:
    return torch.stack([table[ids].mean(dim=0) for ids in pieces])


def _require_words(tokens: Sequence[str]) -> None:
    if not tokens:
        raise InputError("no token is new; give some that the vocabulary does not have")
    for token in tokens:
        word = f"a{token[2:]}" if token.startswith("##") else token
        if token == "##" or word.translate(WORD_BREAKS).split() != [word]:
            raise InputError(
                f"{token!r} is never looked up: words are split at white space, punctuation and Hanja first; give "
                "words or parts of them, with ## where they go on with one"
            )


def _split(token: str, known: dict[str, int]) -> list[int]:
    """Return the ids of the longest pieces from the left, as WordPiece finds them; none if it finds none."""
    prefix, text = ("##", token[2:]) if token.startswith("##") else ("", token)
    ids = []
    while text:
        piece = next((text[:end] for end in range(len(text), 0, -1) if prefix + text[:end] in known), None)
        if piece is None:
            return []
        ids.append(known[prefix + piece])
        prefix, text = "##", text[len(piece) :]
    return ids
