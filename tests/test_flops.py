"""Claims about the operations of a step: they are what the model computes, and what parts them from the paper's."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.configuration import SIZES, KcElectraConfig
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.modeling import KcElectraForPreTraining

VOCAB_SIZE = 1200


def make_batch(tokenizer, max_length, *, num_rows):
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    return collator([{"input_ids": [2, *[9] * (max_length - 2), 3], "row_id": i} for i in range(num_rows)])


@pytest.mark.parametrize(
    ("overrides", "max_length", "num_masked"),
    [
        ({}, 64, 9),  # the discriminator as wide as its embeddings: one projection
        ({"embedding_size": 32}, 128, 19),  # a projection in each half
        ({"generator_fraction": 1.0, "num_hidden_layers": 1}, 16, 2),  # no projection
        ({"discriminator_weight": 0.0}, 64, 9),  # the generator alone
    ],
)
def test_operations_equal_those_of_a_training_step(tokenizer, overrides, max_length, num_masked):
    config = KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE, **overrides)
    # eager: the counter knows its products on every device, those of fused attention not
    model = KcElectraForPreTraining._from_config(config, attn_implementation="eager")
    batch = make_batch(tokenizer, max_length, num_rows=2)
    assert batch["masked_positions"].shape == (2, num_masked)
    with FlopCounterMode(display=False) as counter:
        loss = model(**batch).loss
        forward = counter.get_total_flops()
        loss.backward()
    per_row = training_flops_per_row(config, max_length=max_length, num_masked=num_masked)
    assert counter.get_total_flops() == 3 * forward == 2 * per_row


def paper_flops_per_token(*, h, l, e, s, v, is_discriminator, products_only=False):  # noqa: E741
    """Count the forward operations of one token as the paper does, in its letters.

    h hidden, l layers, e embedding, s sequence length, v vocabulary; 2mn for a product; for each value, softmax 5,
    dropout 4, layer normalisation 5, activation 8, and bias, scale and residual 1 each.

    Source: google-research/electra `flops_computation.py`, figures only; it counts one attention layer norm as 5
    operations, whatever its width.
    """
    heads, i, other = max(h // 64, 1), 4 * h, 0 if products_only else 1
    block = 2 * (3 * h * h + 2 * h * s + h * h + 2 * h * i)  # query, key, value; scores, values; output; feed-forward
    attention_other = 3 * h + heads * s * (5 + 4 + 1) + h * (1 + 4 + 1) + 5
    feed_forward_other = i * (8 + 1) + h * (1 + 4 + 1 + 5)
    embeddings = 2 * e * v + 2 * e * (s + 2) + 2 * e + 5 * e + 4 * e  # look-ups as products with one-hot matrices
    projection = (2 * h * e + other * h) if e != h else 0
    body = l * (block + other * (attention_other + feed_forward_other)) + other * embeddings + projection
    if is_discriminator:
        return body + 2 * h * h + 2 * h + other * (h + 8 * h)
    head = 2 * e * v + 2 * h * e + other * (e + 8 * e + 5 * e + 5 * v + 2 * v)
    return body + head * 5 / 32  # 0.15625 of the tokens reach the vocabulary


def paper_flops_per_row(*, hidden, generator_hidden, layers, e, s, v=30522, products_only=False):
    shared = {"l": layers, "e": e, "s": s, "v": v, "products_only": products_only}
    return s * (
        paper_flops_per_token(h=hidden, is_discriminator=True, **shared)
        + paper_flops_per_token(h=generator_hidden, is_discriminator=False, **shared)
    )


def test_paper_convention_gives_the_published_totals():
    small = paper_flops_per_row(hidden=256, generator_hidden=64, layers=12, e=128, s=128)
    assert 2 * 128 * 1_000_000 * small == 1293743798272000000
    base = paper_flops_per_row(hidden=768, generator_hidden=256, layers=12, e=768, s=512)
    assert 2 * 256 * 766_000 * base == 6.424541834277683e19
    large = paper_flops_per_row(hidden=1024, generator_hidden=256, layers=24, e=1024, s=512)
    assert 2 * 2048 * 400_000 * large == 7.117606040895488e20


@pytest.mark.parametrize(("size", "max_length"), [("small", 128), ("base", 512), ("large", 512)])
def test_operations_differ_from_the_paper_only_by_what_the_docstring_says(size, max_length):
    config = KcElectraConfig.from_size(size, vocab_size=30522)
    products = paper_flops_per_row(
        hidden=config.discriminator_config.hidden_size,
        generator_hidden=config.generator_config.hidden_size,
        layers=SIZES[size].num_hidden_layers,
        e=SIZES[size].embedding_size,
        s=max_length,
        products_only=True,
    )
    num_masked = max_length * 5 // 32  # the paper's share of tokens that reach the vocabulary
    assert training_flops_per_row(config, max_length=max_length, num_masked=num_masked) == 3 * products


def test_masked_positions_cost_the_output_layer_only():
    config = KcElectraConfig.from_size("base", vocab_size=50135)
    flops = [training_flops_per_row(config, max_length=512, num_masked=num_masked) for num_masked in (79, 80)]
    assert flops[1] - flops[0] == 3 * 2 * (256 * 768 + 768 * 50135)


def test_attention_counts_the_tokens_that_are_seen():
    config = KcElectraConfig.from_size("base", vocab_size=50135)
    dense, half = (
        training_flops_per_row(config, max_length=512, num_masked=79, num_seen=num_seen) for num_seen in (512, 256)
    )
    assert dense == training_flops_per_row(config, max_length=512, num_masked=79)
    assert dense - half == 3 * 12 * 2 * 2 * 512 * 256 * (768 + 256)


def test_operations_are_an_exact_integer():
    flops = training_flops_per_row(
        KcElectraConfig.from_size("large", vocab_size=50135), max_length=512, num_masked=130
    )
    assert type(flops) is int
