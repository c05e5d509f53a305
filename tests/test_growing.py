"""Tokens that are added to a tokenizer and to both halves of a joint model."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from kcelectra import KcElectraConfig, KcElectraForPreTraining, export_checkpoint
from kcelectra.errors import InputError
from kcelectra.pretraining.growing import grow_vocabulary
from kcelectra.tokenization import save_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

TOKENS = ["존", "잼", "##잼", "노", "##이", "##네", "영화", "[unused0]", "[unused1]"]
NUM_TOKENS = len(SPECIAL_TOKENS) + len(TOKENS)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, *TOKENS])
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1))
    torch.nn.init.normal_(model.generator.generator_lm_head.bias)
    return model.eval(), tokenizer


def table_of(model) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach().clone()


def test_unused_tokens_are_taken_first_then_it_grows(pair):
    model, tokenizer = pair
    grown = grow_vocabulary(model, tokenizer, ["존잼", "##잼이네", "노잼"])
    assert tokens_by_id(grown)[-3:] == ["존잼", "##잼이네", "노잼"]
    assert len(grown) == NUM_TOKENS + 1
    assert grown.tokenize("존잼 노잼 존잼이네") == ["존잼", "노잼", "존잼", "##이", "##네"]
    assert tokenizer.tokenize("존잼") == ["존", "##잼"]  # as it was


def test_without_need_the_size_stays(pair):
    model, tokenizer = pair
    grown = grow_vocabulary(model, tokenizer, ["존잼"])
    assert len(grown) == NUM_TOKENS == model.config.generator_config.vocab_size
    assert "[unused0]" not in grown.get_vocab() and "[unused1]" in grown.get_vocab()


def test_a_row_to_spare_that_becomes_a_token_may_be_drawn(pair):
    model, tokenizer = pair
    model.resize_token_embeddings(NUM_TOKENS + 2, mean_resizing=False)
    model.config.unsampled_token_ids += [NUM_TOKENS, NUM_TOKENS + 1]
    grown = grow_vocabulary(model, tokenizer, ["존잼", "##잼이네", "노잼"])
    assert len(grown) == NUM_TOKENS + 1
    assert model.config.unsampled_token_ids == [0, 2, 3, 4, NUM_TOKENS + 1]


def test_the_others_keep_their_ids_and_rows(pair):
    model, tokenizer = pair
    before, bias = table_of(model), model.generator.generator_lm_head.bias.detach().clone()
    grown = grow_vocabulary(model, tokenizer, ["존잼", "노잼", "영화네"])
    is_same = [index for index, token in enumerate(tokens_by_id(tokenizer)) if grown.get_vocab().get(token) == index]
    assert len(is_same) == NUM_TOKENS - 2
    assert torch.equal(table_of(model)[is_same], before[is_same])
    assert torch.equal(model.generator.generator_lm_head.bias[is_same], bias[is_same])


@pytest.mark.parametrize(
    ("token", "pieces"),
    [
        ("존잼", ["존", "##잼"]),
        ("##잼이네", ["##잼", "##이", "##네"]),
        ("영화이", ["영화", "##이"]),
        ("핵", ["[UNK]"]),
    ],
)
@pytest.mark.parametrize("others", [[], ["노잼", "노네"]])
def test_a_new_row_is_the_mean_of_its_pieces(pair, token, pieces, others):
    model, tokenizer = pair
    before, bias = table_of(model), model.generator.generator_lm_head.bias.detach().clone()
    ids = tokenizer.convert_tokens_to_ids(pieces)
    index = grow_vocabulary(model, tokenizer, [*others, token]).get_vocab()[token]
    torch.testing.assert_close(table_of(model)[index], before[ids].mean(dim=0))
    torch.testing.assert_close(model.generator.generator_lm_head.bias[index], bias[ids].mean())


def test_the_halves_share_their_embeddings_still_and_their_configurations_are_true(pair):
    model, tokenizer = pair
    size = len(grow_vocabulary(model, tokenizer, ["존잼", "노잼", "영화네", "영화이"]))
    assert size == NUM_TOKENS + 2
    tables = {
        model.discriminator.electra.embeddings.word_embeddings.weight.data_ptr(),
        model.generator.electra.embeddings.word_embeddings.weight.data_ptr(),
        model.generator.generator_lm_head.weight.data_ptr(),
    }
    assert len(tables) == 1
    for config in (model.config.generator_config, model.config.discriminator_config):
        assert config.vocab_size == size
    assert model.generator.config.vocab_size == model.discriminator.config.vocab_size == size
    assert model.generator.generator_lm_head.bias.shape == (size,)


def test_a_text_without_new_tokens_gives_the_same_logits(pair):
    model, tokenizer = pair
    ids = torch.tensor([tokenizer("영화이 노")["input_ids"]])
    generator, discriminator = model.generator(ids).logits, model.discriminator(ids).logits
    grow_vocabulary(model, tokenizer, ["존잼", "노잼", "영화네"])
    assert torch.equal(model.discriminator(ids).logits, discriminator)
    kept = [i for i, token in enumerate(tokens_by_id(tokenizer)) if not token.startswith("[unused")]
    torch.testing.assert_close(model.generator(ids).logits[..., kept], generator[..., kept])


def test_a_grown_model_is_saved_exported_and_loaded(pair, tmp_path):
    model, tokenizer = pair
    grown = grow_vocabulary(model, tokenizer, ["존잼", "노잼", "영화네"])
    model.save_pretrained(tmp_path / "grown")
    save_tokenizer(grown, tmp_path / "grown")
    export_checkpoint(tmp_path / "grown", tmp_path / "export")
    ids = torch.tensor([grown("존잼 영화네")["input_ids"]])
    for loader, half, name in (
        (AutoModelForPreTraining, model.discriminator, "discriminator"),
        (AutoModelForMaskedLM, model.generator, "generator"),
    ):
        loaded = loader.from_pretrained(tmp_path / "export" / name).eval()
        assert torch.equal(loaded(ids).logits, half(ids).logits)
        assert AutoTokenizer.from_pretrained(tmp_path / "export" / name).get_vocab() == grown.get_vocab()


def test_known_tokens_are_left_out(pair):
    model, tokenizer = pair
    assert len(grow_vocabulary(model, tokenizer, ["영화", "존잼", "존잼"])) == NUM_TOKENS
    with pytest.raises(InputError, match="no token is new; give some that the vocabulary does not have"):
        grow_vocabulary(model, tokenizer, ["영화"])


@pytest.mark.parametrize("token", ["존 잼", "존잼!", "##", "", "漢字", "##漢", "존\u200b잼", "[unused7]"])
def test_a_token_that_no_text_could_hold_is_refused_and_nothing_changes(pair, token):
    model, tokenizer = pair
    before = table_of(model)
    with pytest.raises(InputError, match="is never looked up: words are split at white space, punctuation"):
        grow_vocabulary(model, tokenizer, ["노잼", token])
    assert torch.equal(table_of(model), before)


@pytest.mark.parametrize("token", ["漢", "！"])
def test_a_character_that_is_a_word_of_its_own_can_be_added(pair, token):
    model, tokenizer = pair
    assert grow_vocabulary(model, tokenizer, [token]).tokenize(f"존{token}잼") == ["존", token, "잼"]


def test_a_tokenizer_of_another_model_is_refused(pair):
    model, _ = pair
    with pytest.raises(InputError, match="the model has 14 tokens, and the tokenizer has 15 tokens"):
        grow_vocabulary(model, as_bert_tokenizer([*SPECIAL_TOKENS, *map(str, range(10))]), ["존잼"])
