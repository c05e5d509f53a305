"""Configuration of the joint model: one table of sizes, the generator derived from the discriminator."""

import copy
import difflib
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, ElectraConfig, PreTrainedConfig

from kcelectra.errors import InputError


@dataclass(frozen=True)
class ElectraSize:
    """Architecture of a discriminator, and the width of its generator as a fraction of its own."""

    num_hidden_layers: int
    hidden_size: int
    embedding_size: int
    num_attention_heads: int
    generator_fraction: float


#: small, base, large: Clark et al. 2020, tables 6 and 7. tiny and mini (as deep and wide as those of Turc et al. 2019
#: but for tiny's depth): for a CPU; their generators are as wide as one head.
SIZES = {
    "tiny": ElectraSize(4, 128, 128, 2, 1 / 2),
    "mini": ElectraSize(4, 256, 128, 4, 1 / 4),
    "small": ElectraSize(12, 256, 128, 4, 1 / 4),
    "base": ElectraSize(12, 768, 768, 12, 1 / 3),
    "large": ElectraSize(24, 1024, 1024, 16, 1 / 4),
}

HEAD_SIZE = 64  # of every published size; google-research/electra, get_generator_config, divides by it
EMBEDDING_SHARING = ("full", "gdes")
#: Of the embeddings, which the halves share.
SHARED_SIZES = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")
OTHER_FRACTION = 1 / 4  # of a discriminator that is as wide as none of these; Clark et al. 2020: 1/4 to 1/2 work best


class KcElectraConfig(PreTrainedConfig):
    """Configuration of a generator and a discriminator trained together.

    Args:
        generator_config: `ElectraConfig` or its dictionary.
        discriminator_config: `ElectraConfig` or its dictionary; vocabulary, embedding size, position table and token
            types equal the generator's, because the embeddings are shared.
        generator_weight: weight of the masked language modeling loss; 1 in the paper.
        discriminator_weight: weight of the replaced token detection loss; 50 in the paper.
        sampling_temperature: > 0, of the generator's distribution when replacements are drawn; 1 in the paper.
        unsampled_token_ids: ids that are never drawn as a replacement: `[PAD] [CLS] [SEP] [MASK]`. Differs from the
            reference, which may draw any id: give `[]` for that.
        embedding_sharing: full, as in the paper; or gdes, gradient-disentangled embedding sharing (He et al. 2021,
            DeBERTaV3, section 3.3): see `DisentangledEmbedding`.

    Raises:
        InputError: the two sub-configurations cannot share embeddings, or a value is out of range.
    """

    model_type = "kcelectra"
    sub_configs = {"generator_config": ElectraConfig, "discriminator_config": ElectraConfig}

    def __init__(
        self,
        generator_config: ElectraConfig | dict[str, Any] | None = None,
        discriminator_config: ElectraConfig | dict[str, Any] | None = None,
        *,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
        sampling_temperature: float = 1.0,
        unsampled_token_ids: list[int] | tuple[int, ...] = (0, 2, 3, 4),
        embedding_sharing: str = "full",
        **kwargs: Any,
    ) -> None:
        self.generator_config = _as_electra_config(generator_config)
        self.discriminator_config = _as_electra_config(discriminator_config)
        self.generator_weight = generator_weight
        self.discriminator_weight = discriminator_weight
        self.sampling_temperature = sampling_temperature
        self.unsampled_token_ids = list(unsampled_token_ids)
        self.embedding_sharing = embedding_sharing
        if embedding_sharing not in EMBEDDING_SHARING:
            raise InputError(f"embedding_sharing is {embedding_sharing!r}; use {' or '.join(EMBEDDING_SHARING)}")
        _check_shared_embeddings(self.generator_config, self.discriminator_config)
        if not sampling_temperature > 0:
            raise InputError(f"sampling_temperature is {sampling_temperature}; it must be above 0 (1.0 in the paper)")
        kwargs["tie_word_embeddings"] = True  # the joint model does not exist untied
        kwargs.setdefault("pad_token_id", self.discriminator_config.pad_token_id)
        super().__init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, *, vocab_size: int, **overrides: Any) -> "KcElectraConfig":
        """Build the configuration of a published size.

        Args:
            size: a key of `SIZES`: tiny, mini, small, base or large.
            vocab_size: number of tokens.
            **overrides: `generator_fraction` (0 to 1, width of the generator), `generator_layers` (as deep as the
                discriminator if None), any field of this class, or any field of `ElectraConfig`, which is then set in
                both halves (`max_position_embeddings`, `hidden_dropout_prob`, ...).

        Returns:
            A configuration; heads and feed-forward size of the generator follow from its width.

        Raises:
            InputError: the size or an override is unknown, or the generator's width is no whole number of heads, or
                it has no layer.

        Source: google-research/electra `get_generator_config`.
        """
        if size not in SIZES:
            raise InputError(f"unknown size {size!r}; use one of {', '.join(SIZES)}")
        chosen = SIZES[size]
        width = _generator_width(chosen.hidden_size, overrides.pop("generator_fraction", chosen.generator_fraction))
        generator_layers = overrides.pop("generator_layers", None)
        own_keys = {"generator_weight", "discriminator_weight", "sampling_temperature", "unsampled_token_ids"}
        own_keys |= {"embedding_sharing"}
        own = {key: overrides.pop(key) for key in own_keys & overrides.keys()}
        _check_keys(overrides, own_keys | {"generator_fraction", "generator_layers"})
        shared = {"vocab_size": vocab_size, "embedding_size": chosen.embedding_size, **overrides}
        generator = _electra_config(chosen, width, shared)
        _set_layers(generator, generator_layers)
        return cls(
            generator_config=generator, discriminator_config=_electra_config(chosen, chosen.hidden_size, shared), **own
        )

    @classmethod
    def from_discriminator(
        cls,
        discriminator: ElectraConfig,
        *,
        generator_fraction: float | None = None,
        generator_layers: int | None = None,
        **own: Any,
    ) -> "KcElectraConfig":
        """Build the configuration of a discriminator that is there already and a generator that is not.

        Args:
            discriminator: of any size.
            generator_fraction: 0 to 1, width of the generator; that of the published size as wide as the
                discriminator, or `OTHER_FRACTION`, if None.
            generator_layers: of the generator; as many as the discriminator has if None.
            **own: any field of this class.

        Returns:
            A configuration; the generator's width, depth, heads and feed-forward size aside, both halves are alike.

        Raises:
            InputError: the generator's width is no whole number of heads, or it has no layer.

        Source: google-research/electra `get_generator_config`.
        """
        published = {size.hidden_size: size.generator_fraction for size in SIZES.values()}
        if generator_fraction is None:
            generator_fraction = published.get(discriminator.hidden_size, OTHER_FRACTION)
        generator = copy.deepcopy(discriminator)
        generator.architectures = None
        for field, value in _generator_sizes(_generator_width(discriminator.hidden_size, generator_fraction)).items():
            setattr(generator, field, value)
        _set_layers(generator, generator_layers)
        return cls(generator_config=generator, discriminator_config=discriminator, **own)


def _electra_config(size: ElectraSize, hidden_size: int, shared: dict[str, Any]) -> ElectraConfig:
    derived = {"num_hidden_layers": size.num_hidden_layers, **_generator_sizes(hidden_size)}
    if hidden_size == size.hidden_size:
        derived["num_attention_heads"] = size.num_attention_heads
    return ElectraConfig(**{**derived, **shared})


def _generator_sizes(width: int) -> dict[str, int]:
    heads = max(1, width // HEAD_SIZE)
    return {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}


def _generator_width(hidden_size: int, fraction: float) -> int:
    width = round(hidden_size * fraction)
    if not 0 < fraction <= 1 or width == 0 or width % max(1, width // HEAD_SIZE):
        raise InputError(
            f"generator_fraction {fraction} of {hidden_size} is {width}, which is no whole number of heads; give "
            f"a share between 0 and 1 whose width is below or a multiple of {HEAD_SIZE}"
        )
    return width


def _set_layers(generator: ElectraConfig, num_layers: int | None) -> None:
    if num_layers is not None and num_layers < 1:
        raise InputError(f"generator_layers is {num_layers}; give at least 1, or half of the discriminator's")
    generator.num_hidden_layers = num_layers or generator.num_hidden_layers


def _as_electra_config(config: ElectraConfig | dict[str, Any] | None) -> ElectraConfig:
    if isinstance(config, ElectraConfig):
        return config
    return ElectraConfig(**(config or {}))


def _check_shared_embeddings(generator: ElectraConfig, discriminator: ElectraConfig) -> None:
    for field in SHARED_SIZES:
        ours, theirs = getattr(generator, field), getattr(discriminator, field)
        if ours != theirs:
            raise InputError(
                f"generator_config.{field} is {ours}, discriminator_config.{field} is {theirs}; the two share their "
                f"embeddings, so give both the same {field}"
            )


def _check_keys(overrides: dict[str, Any], own_keys: set[str]) -> None:
    known = own_keys | set(ElectraConfig().to_dict())
    for key in overrides:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"unknown configuration field {key!r}{hint}")


AutoConfig.register(KcElectraConfig.model_type, KcElectraConfig)
