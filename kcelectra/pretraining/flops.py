"""Floating point operations of a training step, by a stated formula."""

from transformers import ElectraConfig

from kcelectra.pretraining.configuration import KcElectraConfig

BACKWARD_FACTOR = 3  # forward once, backward twice as much: the usual convention of model FLOPs utilisation


def training_flops_per_row(
    config: KcElectraConfig,
    *,
    max_length: int,
    num_masked: int,
    num_seen: int | None = None,
    is_generator_frozen: bool = False,
    is_discriminator_frozen: bool = False,
) -> int:
    """Count the operations of one row in one training step, forward and backward.

    Three times the forward pass. A matrix product of (m, k) and (k, n) counts 2mkn; embedding look-ups, biases,
    normalisation, activations and softmax count nothing; attention counts as dense over the row, the usual convention.
    Differs from the reference (`flops_computation.py`), which takes twice the forward pass and counts a look-up as a
    product with a one-hot matrix.

    Args:
        config: of the joint model.
        max_length: tokens of a row.
        num_masked: masked positions of a row; only these reach the vocabulary.
        num_seen: tokens that a token attends to; all of the row if None. A token of a packed row needs to see its own
            document only.
        is_generator_frozen: its forward pass counts alone.
        is_discriminator_frozen: likewise, as in the warm-up of a generator.

    Returns:
        Operations of generator and discriminator together; of the generator alone where the discriminator has no
        weight and does not run.
    """
    generator, discriminator = config.generator_config, config.discriminator_config
    embedding, vocabulary = generator.embedding_size, generator.vocab_size
    masked_head = num_masked * 2 * (generator.hidden_size * embedding + embedding * vocabulary)
    replaced_head = max_length * 2 * discriminator.hidden_size * (discriminator.hidden_size + 1)
    seen = max_length if num_seen is None else num_seen
    of_generator = _body_flops_per_token(generator, seen) * max_length + masked_head
    of_discriminator = _body_flops_per_token(discriminator, seen) * max_length + replaced_head
    if not config.discriminator_weight:
        return BACKWARD_FACTOR * of_generator
    generator_factor, discriminator_factor = (
        1 if is_frozen else BACKWARD_FACTOR for is_frozen in (is_generator_frozen, is_discriminator_frozen)
    )
    return generator_factor * of_generator + discriminator_factor * of_discriminator


def _body_flops_per_token(config: ElectraConfig, num_seen: int) -> int:
    hidden, projection = config.hidden_size, config.embedding_size
    attention = 4 * hidden * hidden + 2 * num_seen * hidden  # query, key, value, output; scores and weighted values
    feed_forward = 2 * hidden * config.intermediate_size
    projected = projection * hidden if projection != hidden else 0
    return 2 * (config.num_hidden_layers * (attention + feed_forward) + projected)
