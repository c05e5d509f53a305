"""Claims about the configuration: sizes are the published ones, halves fit, and mistakes are named."""

import json

import pytest
from transformers import AutoConfig, ElectraConfig

from kcelectra.pretraining.configuration import SIZES, KcElectraConfig
from kcelectra.pretraining.modeling import KcElectraForPreTraining

VOCAB_SIZE = 1200


def widths(config):
    return (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)


def test_sizes_are_those_of_the_paper_and_two_for_a_cpu():
    assert list(SIZES) == ["tiny", "mini", "small", "base", "large"]


@pytest.mark.parametrize(
    ("size", "embedding_size", "discriminator", "generator"),
    [
        ("tiny", 128, (4, 128, 2, 512), (4, 64, 1, 256)),
        ("mini", 128, (4, 256, 4, 1024), (4, 64, 1, 256)),
        ("small", 128, (12, 256, 4, 1024), (12, 64, 1, 256)),
        ("base", 768, (12, 768, 12, 3072), (12, 256, 4, 1024)),
        ("large", 1024, (24, 1024, 16, 4096), (24, 256, 4, 1024)),
    ],
)
def test_widths_follow_from_the_size(size, embedding_size, discriminator, generator):
    config = KcElectraConfig.from_size(size, vocab_size=VOCAB_SIZE)
    assert widths(config.discriminator_config) == discriminator
    assert widths(config.generator_config) == generator
    for half in (config.discriminator_config, config.generator_config):
        assert (half.vocab_size, half.embedding_size) == (VOCAB_SIZE, embedding_size)


def test_rest_of_the_architecture_is_the_reference():
    config = KcElectraConfig.from_size("base", vocab_size=VOCAB_SIZE)
    for half in (config.discriminator_config, config.generator_config):
        assert half.hidden_act == "gelu"
        assert half.hidden_dropout_prob == half.attention_probs_dropout_prob == 0.1
        assert half.layer_norm_eps == 1e-12
        assert half.initializer_range == 0.02
        assert (half.max_position_embeddings, half.type_vocab_size, half.pad_token_id) == (512, 2, 0)
    assert (config.generator_weight, config.discriminator_weight, config.sampling_temperature) == (1.0, 50.0, 1.0)
    assert config.unsampled_token_ids == [0, 2, 3, 4]


def test_generator_as_wide_as_the_discriminator_is_the_released_small():
    config = KcElectraConfig.from_size("small", vocab_size=VOCAB_SIZE, generator_fraction=1.0)
    assert widths(config.generator_config) == widths(config.discriminator_config) == (12, 256, 4, 1024)


@pytest.mark.parametrize(
    ("fraction", "generator"), [(1 / 2, (12, 384, 6, 1536)), (1 / 24, (12, 32, 1, 128)), (1 / 12, (12, 64, 1, 256))]
)
def test_generator_fraction_sets_width_heads_and_feed_forward(fraction, generator):
    config = KcElectraConfig.from_size("base", vocab_size=VOCAB_SIZE, generator_fraction=fraction)
    assert widths(config.generator_config) == generator
    assert widths(config.discriminator_config) == (12, 768, 12, 3072)


def test_overrides_set_both_halves():
    overrides = {
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "embedding_size": 64,
        "num_hidden_layers": 2,
    }
    config = KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE, **overrides)
    for half in (config.discriminator_config, config.generator_config):
        for name, value in overrides.items():
            assert getattr(half, name) == value


def test_overrides_reach_the_joint_configuration():
    config = KcElectraConfig.from_size(
        "tiny",
        vocab_size=VOCAB_SIZE,
        generator_weight=2.0,
        discriminator_weight=25.0,
        sampling_temperature=0.5,
        unsampled_token_ids=[],
    )
    assert (config.generator_weight, config.discriminator_weight, config.sampling_temperature) == (2.0, 25.0, 0.5)
    assert config.unsampled_token_ids == []


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown size 'huge'; use one of tiny, mini, small, base, large"):
        KcElectraConfig.from_size("huge", vocab_size=VOCAB_SIZE)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("max_position_embedding", "max_position_embeddings"),
        ("generator_fractoin", "generator_fraction"),
        ("sampling_temprature", "sampling_temperature"),
        ("discriminator_wieght", "discriminator_weight"),
    ],
)
def test_unknown_override_names_the_nearest_known_one(unknown, nearest):
    with pytest.raises(ValueError, match=f"unknown configuration field {unknown!r}; did you mean {nearest!r}\\?"):
        KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE, **{unknown: 1})


def test_override_like_no_known_one_is_refused_too():
    with pytest.raises(ValueError, match="unknown configuration field 'zzz'$"):
        KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE, zzz=1)


@pytest.mark.parametrize("field", ["vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"])
def test_halves_that_cannot_share_embeddings_are_refused(field):
    with pytest.raises(ValueError, match=f"generator_config.{field} is 7, .*give both the same {field}"):
        KcElectraConfig(generator_config=ElectraConfig(**{field: 7}), discriminator_config=ElectraConfig())


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match=f"sampling_temperature is {temperature}; it must be above 0"):
        KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE, sampling_temperature=temperature)


def test_configuration_survives_saving_and_loading(tmp_path):
    config = KcElectraConfig.from_size(
        "small", vocab_size=VOCAB_SIZE, discriminator_weight=25.0, unsampled_token_ids=(0, 4), hidden_dropout_prob=0.0
    )
    config.save_pretrained(tmp_path)
    loaded = KcElectraConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.generator_config, ElectraConfig)
    assert widths(loaded.generator_config) == (12, 64, 1, 256)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_saved_configuration_names_its_type_and_holds_both_halves(tmp_path):
    KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "kcelectra"
    assert saved["generator_config"]["hidden_size"] == 64 and saved["discriminator_config"]["hidden_size"] == 128


def test_auto_config_finds_it(tmp_path):
    config = KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is KcElectraConfig is KcElectraForPreTraining.config_class
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}


def test_each_configuration_has_a_list_of_unsampled_tokens_of_its_own():
    first = KcElectraConfig()
    first.unsampled_token_ids.append(9)
    assert KcElectraConfig().unsampled_token_ids == [0, 2, 3, 4]


def test_default_halves_are_configurations():
    config = KcElectraConfig()
    assert isinstance(config.generator_config, ElectraConfig) and isinstance(
        config.discriminator_config, ElectraConfig
    )


def test_halves_can_be_dictionaries():
    config = KcElectraConfig.from_size("tiny", vocab_size=VOCAB_SIZE)
    halves = (config.generator_config.to_dict(), config.discriminator_config.to_dict())
    assert KcElectraConfig(*halves).to_dict() == config.to_dict()


# --- from a discriminator that is there


@pytest.mark.parametrize("size", SIZES)
def test_a_generator_for_a_discriminator_of_a_published_size_is_that_of_the_size(size):
    expected = KcElectraConfig.from_size(size, vocab_size=VOCAB_SIZE, hidden_dropout_prob=0.2, layer_norm_eps=1e-6)
    config = KcElectraConfig.from_discriminator(expected.discriminator_config)
    assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("hidden_size", "fraction", "generator"),
    [(512, None, (6, 128, 2, 512)), (384, None, (6, 96, 1, 384)), (768, 1 / 2, (6, 384, 6, 1536))],
)
def test_a_generator_for_any_discriminator_is_as_deep_and_a_fraction_as_wide(hidden_size, fraction, generator):
    given = ElectraConfig(hidden_size=hidden_size, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1000)
    given.architectures = ["ElectraForPreTraining"]
    before = given.to_dict()
    config = KcElectraConfig.from_discriminator(given, generator_fraction=fraction, discriminator_weight=25.0)
    assert widths(config.generator_config) == generator
    assert config.discriminator_config.to_dict() == given.to_dict() == before
    assert config.discriminator_weight == 25.0
    assert config.generator_config.architectures is None


def test_a_fraction_that_gives_no_whole_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="generator_fraction 0.3 of 768 is 230, which is no whole number of heads"):
        KcElectraConfig.from_discriminator(ElectraConfig(hidden_size=768), generator_fraction=0.3)
