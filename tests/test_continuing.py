"""Going on from released weights: what is loaded, what is refused, and what a generator's warm-up leaves alone."""

import json
import math
import os
import shutil
from copy import deepcopy

import pytest
import torch
from hub import HubServer, run_client
from safetensors.torch import load_file, save_file
from test_modeling import assert_tied
from test_trainer import make_trainer
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForPreTraining,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    get_scheduler,
)

from kcelectra import DataCollatorForReplacedTokenDetection, KcElectraConfig, KcElectraForPreTraining
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.continuing import GeneratorWarmup, load_released, released_tokenizer
from kcelectra.pretraining.export import export_model
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.modeling import SHARED_EMBEDDINGS
from kcelectra.pretraining.optimization import product_schedule
from kcelectra.pretraining.run import build_model
from kcelectra.pretraining.run_arguments import ModelArguments
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.tokenization import save_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer, tokens_by_id

SIZES = {"num_hidden_layers": 1, "embedding_size": 64, "max_position_embeddings": 80}
IDS = torch.randint(5, 400, (2, 12), generator=torch.Generator().manual_seed(0))
WARMUP = GeneratorWarmup(3)


def make_model(vocab_size, *, seed=0, **overrides):
    """Return a model in which no weight has the value that it is initialised with."""
    torch.manual_seed(seed)
    config = KcElectraConfig.from_size("tiny", vocab_size=vocab_size, **{**SIZES, **overrides})
    model = KcElectraForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def original(tokenizer):
    return make_model(len(tokenizer))


@pytest.fixture(scope="module")
def release(original, tokenizer, tmp_path_factory):
    """What `export_checkpoint` writes: `discriminator/` and `generator/`."""
    directory = tmp_path_factory.mktemp("release") / "export"
    export_model(original, tokenizer, directory)
    return directory


def copy_half(release, directory, half, change):
    """Copy a half and let `change` alter its weights by name."""
    shutil.copytree(release / half, directory)
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


def assert_equal_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def embeddings_of(half):
    return half.electra.embeddings.state_dict()


def own_weights(model):
    """Return the generator's weights that the discriminator does not share, by name."""
    shared = {id(parameter) for parameter in model.discriminator.parameters()}
    return {name: p for name, p in model.generator.named_parameters() if id(p) not in shared}


# --- a discriminator without a generator


def test_the_discriminator_is_the_released_one_bit_for_bit(original, release, tokenizer):
    model = load_released(str(release), tokenizer).eval()
    assert_equal_weights(model.discriminator, original.discriminator)
    assert torch.equal(model.discriminator(IDS).logits, original.discriminator(IDS).logits)
    assert_tied(model)


def test_a_generator_that_is_not_there_is_new_and_shares_the_embeddings(original, release, tokenizer):
    torch.manual_seed(7)
    model = load_released(str(release), tokenizer)
    fresh = own_weights(model)
    assert not any(torch.equal(fresh[name], old) for name, old in own_weights(original).items())
    assert not fresh["generator_lm_head.bias"].any()
    torch.manual_seed(7)
    again = own_weights(load_released(str(release), tokenizer))
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)
    assert (model.config.generator_config.hidden_size, model.config.generator_config.embedding_size) == (64, 64)


def test_the_options_of_a_joint_model_can_be_given(release, tokenizer):
    options = {"generator_weight": 2.0, "discriminator_weight": 25.0, "unsampled_token_ids": [0, 4]}
    model = load_released(str(release), tokenizer, generator_fraction=0.25, **options)
    assert model.config.generator_config.hidden_size == 32
    assert {name: getattr(model.config, name) for name in options} == options


def test_weights_in_half_precision_are_trained_in_float32(release, tokenizer, tmp_path):
    half = ElectraForPreTraining.from_pretrained(release / "discriminator").half()
    half.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    model = load_released(str(tmp_path), tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.discriminator_config.dtype == model.config.generator_config.dtype == torch.float32
    loaded = model.discriminator.state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in half.state_dict().items())


def test_a_continued_model_is_exported_as_plain_repositories_of_the_same_sizes(original, release, tokenizer, tmp_path):
    model = load_released(str(release), tokenizer).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    assert str(release) not in (tmp_path / "checkpoint" / "config.json").read_text()
    export_model(KcElectraForPreTraining.from_pretrained(tmp_path / "checkpoint"), tokenizer, tmp_path / "export")
    discriminator = AutoModelForPreTraining.from_pretrained(tmp_path / "export" / "discriminator").eval()
    generator = AutoModelForMaskedLM.from_pretrained(tmp_path / "export" / "generator").eval()
    assert torch.equal(discriminator(IDS).logits, original.discriminator(IDS).logits)
    assert torch.equal(generator(IDS).logits, model.generator(IDS).logits)
    for half in ("discriminator", "generator"):
        ours, theirs = (
            json.loads((path / half / "config.json").read_text()) for path in (tmp_path / "export", release)
        )
        assert ours == theirs


# --- with its generator


def test_with_its_generator_the_joint_model_is_as_it_was(original, release, tokenizer):
    model = load_released(str(release), tokenizer, generator=str(release))
    assert_equal_weights(model, original)
    assert_tied(model)


def test_halves_from_two_directories_are_joined(original, release, tokenizer):
    model = load_released(f"{release}/discriminator", tokenizer, generator=f"{release}/generator")
    assert_equal_weights(model, original)


def test_a_generator_of_another_depth_keeps_its_sizes(release, tokenizer, original, tmp_path):
    other = make_model(len(tokenizer), num_hidden_layers=3)
    for name in SHARED_EMBEDDINGS:
        embeddings_of(other.generator)[name].copy_(embeddings_of(original.discriminator)[name])
    export_model(other, tokenizer, tmp_path / "export")
    model = load_released(str(release), tokenizer, generator=str(tmp_path / "export"))
    assert_equal_weights(model.generator, other.generator)
    assert_equal_weights(model.discriminator, original.discriminator)


@pytest.mark.parametrize("name", SHARED_EMBEDDINGS)
def test_unequal_embeddings_are_refused_and_the_message_says_which_and_by_how_much(release, tokenizer, tmp_path, name):
    def move(weights):
        weights[f"electra.embeddings.{name}"][-1] += 0.5

    generator = copy_half(release, tmp_path / "generator", "generator", move)
    with pytest.raises(InputError) as refusal:
        load_released(str(release), tokenizer, generator=generator)
    message = str(refusal.value)
    assert [table for table in SHARED_EMBEDDINGS if f"{table} in " in message] == [name]
    assert f"{name} in 1 of " in message and "rows by up to 0.5;" in message
    assert "--init_embeddings discriminator or --init_embeddings generator" in message


def test_a_difference_in_the_last_bit_and_one_that_is_no_number_are_seen(release, tokenizer, tmp_path):
    def nudge(weights):
        weights["electra.embeddings.LayerNorm.bias"].mul_(1 + 2**-23)
        weights["electra.embeddings.word_embeddings.weight"][7, 0] = math.nan

    generator = copy_half(release, tmp_path / "generator", "generator", nudge)
    with pytest.raises(InputError, match=r"word_embeddings.weight in 1 of 1200 rows by up to nan, LayerNorm.bias in "):
        load_released(str(release), tokenizer, generator=generator)


@pytest.mark.parametrize("kept", ["discriminator", "generator"])
def test_of_unequal_embeddings_those_of_the_named_half_are_kept_and_no_other_weight_changes(
    original, release, tokenizer, tmp_path, kept
):
    other = make_model(len(tokenizer), seed=1)
    export_model(other, tokenizer, tmp_path / "export")
    model = load_released(str(release), tokenizer, generator=str(tmp_path / "export"), embeddings=kept)
    owner = original.discriminator if kept == "discriminator" else other.generator
    for half, source in ((model.discriminator, original.discriminator), (model.generator, other.generator)):
        expected = source.state_dict() | {
            f"electra.embeddings.{name}": table for name, table in embeddings_of(owner).items()
        }
        expected |= {name: embeddings_of(owner)["word_embeddings.weight"] for name in ("generator_lm_head.weight",)}
        assert all(torch.equal(weight, expected[name]) for name, weight in half.state_dict().items())
    assert_tied(model)


@pytest.mark.parametrize("size", ["embedding_size", "max_position_embeddings", "type_vocab_size"])
def test_halves_that_cannot_share_embeddings_are_refused_with_both_sizes(release, tokenizer, tmp_path, size):
    export_model(make_model(len(tokenizer), **{size: 48}), tokenizer, tmp_path / "export")
    for embeddings in (None, "discriminator", "generator"):
        with pytest.raises(InputError, match=rf"does not fit .*generator_config.{size} is 48, .*--init_generator"):
            load_released(str(release), tokenizer, generator=str(tmp_path / "export"), embeddings=embeddings)


def test_a_generator_with_output_embeddings_of_its_own_is_refused(original, release, tokenizer, tmp_path):
    config = ElectraForMaskedLM.from_pretrained(release / "generator").config
    config.tie_word_embeddings = False
    generator = ElectraForMaskedLM(config)
    generator.electra.load_state_dict(original.generator.electra.state_dict())
    generator.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(InputError, match="its output embeddings are not its input embeddings"):
        load_released(str(release), tokenizer, generator=str(tmp_path), embeddings="generator")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embeddings": "generator"}, "leave out --init_embeddings"),
        ({"generator": "here", "generator_fraction": 0.5}, "leave out --generator_fraction"),
        ({"generator": "here", "embeddings": "mean"}, "'mean'; give discriminator or generator"),
    ],
)
def test_options_that_would_be_ignored_are_refused(release, tokenizer, options, message):
    options = {name: str(release) if value == "here" else value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        load_released(str(release), tokenizer, **options)


# --- the vocabulary


def test_the_tokenizer_of_a_release_is_its_own(release, tokenizer):
    for source in (release, release / "discriminator"):
        assert tokens_by_id(released_tokenizer(str(source))) == tokens_by_id(tokenizer)


def swap(tokens):
    return [*tokens[:-2], tokens[-1], tokens[-2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "differ in 2 ids, 1198 is '(?P<a>.+)' here and '(?P<b>.+)' there; leave out --tokenizer"),
        (lambda tokens: tokens[:-1], "differ in 1 ids, 1199 is None here"),
        (lambda tokens: [*tokens, "존잼탱"], "differ in 1 ids, 1200 is '존잼탱' here and None there"),
    ],
)
def test_a_run_with_other_tokens_is_refused(release, tokenizer, change, message):
    with pytest.raises(InputError, match=message):
        load_released(str(release), as_bert_tokenizer(change(tokens_by_id(tokenizer))))


def test_a_generator_with_other_tokens_is_refused_even_with_a_choice(original, release, tokenizer, tmp_path):
    export_model(original, as_bert_tokenizer(swap(tokens_by_id(tokenizer))), tmp_path / "export")
    with pytest.raises(InputError, match="differ in 2 ids.*leave out --init_generator"):
        load_released(str(release), tokenizer, generator=str(tmp_path / "export"), embeddings="generator")


def test_rows_of_the_table_without_a_token_stay_and_are_never_drawn(tokenizer, sample_file, tmp_path):
    size = len(tokenizer) + 16
    export_model(make_model(size), tokenizer, tmp_path / "export")
    model = load_released(str(tmp_path / "export"), released_tokenizer(str(tmp_path / "export")))
    assert model.get_input_embeddings().weight.shape[0] == model.config.generator_config.vocab_size == size
    with torch.no_grad():
        model.generator.generator_lm_head.bias[len(tokenizer) :] = 50.0
    assert (model(**make_batch(tokenizer, sample_file)).sampled_ids < len(tokenizer)).all()
    assert model.config.unsampled_token_ids[:4] == [0, 2, 3, 4]


def test_special_tokens_at_other_ids_are_refused(original, tokenizer, tmp_path):
    tokens = tokens_by_id(tokenizer)
    export_model(original, as_bert_tokenizer(tokens[::-1]), tmp_path / "export")
    with pytest.raises(InputError, match="not 0 to 4"):
        released_tokenizer(str(tmp_path / "export"))


# --- what is no discriminator


def make_source(kind, release, directory, tokenizer):
    discriminator = ElectraForPreTraining.from_pretrained(release / "discriminator")
    if kind == "encoder":
        discriminator.electra.save_pretrained(directory)
    elif kind == "classifier":
        ElectraForSequenceClassification(discriminator.config).save_pretrained(directory)
    elif kind == "joint":
        make_model(len(tokenizer)).save_pretrained(directory)
    elif kind == "BERT":
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
        BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory)
    else:
        discriminator.save_pretrained(directory)
    if kind != "without a tokenizer":
        save_tokenizer(tokenizer, directory)
    if kind == "cut":
        weights = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(weights[:-1000])
    if kind == "of another shape":
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("encoder", "holds no discriminator: it has no discriminator_predictions"),
        ("classifier", "holds no discriminator: it has no discriminator_predictions"),
        ("joint", "a model of type kcelectra; give an ELECTRA, of a checkpoint its export"),
        ("BERT", "a model of type bert; give an ELECTRA"),
        ("without a tokenizer", "the model has 1200 tokens, and the tokenizer has 5"),
        ("cut", "cannot load the discriminator"),
        ("of another shape", "cannot load the discriminator"),
    ],
)
def test_what_is_no_whole_discriminator_is_refused(release, tokenizer, tmp_path, kind, message):
    make_source(kind, release, tmp_path, tokenizer)
    with pytest.raises(InputError, match=message):
        load_released(str(tmp_path), tokenizer)


def test_a_generator_is_no_discriminator_and_the_other_way_round(release, tokenizer):
    with pytest.raises(InputError, match="holds no discriminator"):
        load_released(f"{release}/generator", tokenizer)
    with pytest.raises(InputError, match="holds no generator: it has no generator_"):
        load_released(str(release), tokenizer, generator=f"{release}/discriminator")


def test_a_masked_language_model_becomes_both_halves_of_two_stage_training(original, release, tokenizer):
    source = f"{release}/generator"
    model = load_released(source, tokenizer, generator=source)
    expected = original.generator.electra.state_dict()
    for half in (model.generator, model.discriminator):
        body = half.electra.state_dict()
        assert body.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in body.items())
    logits = model.discriminator(torch.tensor([[2, 50, 60, 3]])).logits
    assert logits.isfinite().all() and logits.shape == (1, 4)


@pytest.mark.parametrize("with_generator", [False, True])
def test_the_dropout_of_the_run_holds_in_both_halves(release, tokenizer, with_generator):
    given = {"generator": str(release)} if with_generator else {}
    model = load_released(str(release), tokenizer, hidden_dropout=0.0, attention_dropout=0.3, **given)
    for half in (model.generator, model.discriminator):
        assert (half.config.hidden_dropout_prob, half.config.attention_probs_dropout_prob) == (0.0, 0.3)
        shares = {module.p for module in half.modules() if isinstance(module, torch.nn.Dropout)}
        assert shares == {0.0, 0.3}
    arguments = ModelArguments(init_discriminator=str(release), hidden_dropout=0.0, attention_dropout=0.3)
    assert build_model(arguments, tokenizer).discriminator.config.hidden_dropout_prob == 0.0
    own = load_released(str(release), tokenizer, **given).discriminator.config
    assert (own.hidden_dropout_prob, own.attention_probs_dropout_prob) == (0.1, 0.1)


def test_a_directory_that_is_not_there_says_what_to_type(tokenizer, tmp_path):
    for half, options in (("discriminator", {}), ("generator", {"half": "generator"})):
        with pytest.raises(InputError, match=rf"cannot load the {half} {tmp_path}/x: .*give as --init_{half} a direc"):
            released_tokenizer(f"{tmp_path}/x", **options)


# --- the Hub

LOAD = """
import os
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"  # or a thread asks a Space to convert what is no safetensors
from safetensors.torch import save_model
from kcelectra.pretraining.continuing import load_released, released_tokenizer

def load(name, **options):
    tokenizer = released_tokenizer(name)
    model = load_released(name, tokenizer, **options)
    path = f"{sys.argv[1]}/{len(results)}.safetensors"
    save_model(model.discriminator, path)
    save_model(model.generator, path + ".generator")
    return path

pair = "someone/pair"
attempt("legacy", lambda: load("beomi/KcELECTRA-base-v2022"))
attempt("pair", lambda: load(pair, generator=pair))
attempt("old", lambda: load("someone/pair@old", generator="someone/pair@old"))
attempt("mixed", lambda: load(pair, generator="someone/pair@old"))
attempt("missing revision", lambda: load("someone/pair@v9"))
attempt("missing repository", lambda: load("someone/nothing"))
attempt("code", lambda: load("someone/code"))
"""


class Touch:
    """What a pickle does where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def client(original, release, tokenizer, tmp_path_factory):
    """A discriminator as of 2022, pickled; one with its generator, in two revisions; one that is code."""
    directory = tmp_path_factory.mktemp("hub")
    models = directory / "hub" / "models"
    states = {"beomi/KcELECTRA-base-v2022": original.discriminator.state_dict(), "someone/code": Touch("was_here")}
    for name, state in states.items():
        main = models / name / "main"
        shutil.copytree(release / "discriminator", main)
        (main / "model.safetensors").unlink()
        torch.save(state, main / "pytorch_model.bin")
    export_model(make_model(len(tokenizer), seed=1), tokenizer, directory / "old")
    for revision, export in (("main", release), ("old", directory / "old")):
        shutil.copytree(export / "discriminator", models / "someone" / "pair" / revision)
        shutil.copytree(export / "generator", models / "someone" / "pair" / revision / "generator")
    with HubServer(directory / "hub") as hub:
        return run_client(LOAD, str(directory), hub=hub, directory=directory)


def assert_loaded(path, model):
    for suffix, half in (("", model.discriminator), (".generator", model.generator)):
        saved, weights = load_file(f"{path}{suffix}"), half.state_dict()
        assert saved and all(torch.equal(weight, weights[name]) for name, weight in saved.items())


def test_a_repository_of_2022_with_pickled_weights_is_loaded(client, original):
    saved, weights = load_file(client.results["legacy"]), original.discriminator.state_dict()
    assert saved and all(torch.equal(weight, weights[name]) for name, weight in saved.items())


def test_a_revision_of_the_hub_is_honoured_in_both_halves(client, original, tokenizer):
    assert_loaded(client.results["pair"], original)
    assert_loaded(client.results["old"], make_model(len(tokenizer), seed=1))
    assert "the embeddings of someone/pair@old are not those of someone/pair: " in client.results["mixed"]


@pytest.mark.parametrize("name", ["missing revision", "missing repository", "code"])
def test_what_cannot_be_loaded_from_the_hub_says_what_to_type(client, name):
    message = client.results[name]
    assert message.startswith("kcelectra.errors.InputError: cannot load the discriminator someone/")
    assert "give as --init_discriminator a directory such as out/smoke/export, or OWNER/NAME@REVISION" in message


def test_no_code_of_a_pickle_runs_and_no_other_host_is_asked(client):
    assert not (client.directory / "was_here").exists()
    assert (client.elsewhere, client.unknown) == ([], [])


# --- the generator's warm-up


def make_batch(tokenizer, sample_file, start=0):
    rows = iter(PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=64, num_passes=1))
    rows = [row for _, row in zip(range(start + 4), rows, strict=False)][start:]
    return DataCollatorForReplacedTokenDetection(tokenizer)(rows)


@pytest.fixture(scope="module")
def batches(tokenizer, sample_file):
    return [make_batch(tokenizer, sample_file, start) for start in range(0, 32, 4)]


def make_optimizer(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, **options)


def train(model, optimizer, batches, *, start=0, wrapped=None):
    """Train as the trainer does, one batch an update; return the norms that were clipped."""
    norms = []
    model.train()
    for step, batch in enumerate(batches, start=start):
        torch.manual_seed(step)
        (wrapped or model)(**batch, generator_only=WARMUP.holds(step)).loss.backward()
        if WARMUP.holds(step):
            WARMUP.drop_gradients(model)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms


@pytest.mark.parametrize("kernel", [{}, {"fused": True}, {"foreach": True}])
def test_in_the_warm_up_only_the_generators_own_weights_move_and_afterwards_all(release, tokenizer, batches, kernel):
    model = load_released(str(release), tokenizer)
    optimizer = make_optimizer(model, **kernel)
    discriminator = {name: weight.clone() for name, weight in model.discriminator.state_dict().items()}
    own = {name: weight.detach().clone() for name, weight in own_weights(model).items()}
    logits = model.eval().discriminator(IDS).logits
    train(model, optimizer, batches[:3])
    assert all(torch.equal(weight, discriminator[name]) for name, weight in model.discriminator.state_dict().items())
    assert torch.equal(model.eval().discriminator(IDS).logits, logits)
    assert not any(torch.equal(weight, own[name]) for name, weight in own_weights(model).items())
    assert {id(p) for p in optimizer.state} == {id(p) for p in own_weights(model).values()}
    train(model, optimizer, batches[3:4], start=3)
    moved = dict(model.discriminator.named_parameters())
    assert not any(torch.equal(weight, discriminator[name]) for name, weight in moved.items())
    assert {int(optimizer.state[p]["step"]) for p in moved.values()} == {1}
    assert {int(optimizer.state[p]["step"]) for p in own_weights(model).values()} == {4}


def test_the_warm_up_computes_the_discriminators_metrics_and_leaves_them_out_of_the_loss(release, tokenizer, batches):
    model = load_released(str(release), tokenizer, generator_weight=2.0).train()
    outputs = []
    for generator_only in (False, True):
        torch.manual_seed(0)
        outputs.append(model(**batches[0], generator_only=generator_only))
    whole, warmup = outputs
    for name in set(whole) - {"loss"}:
        assert torch.equal(whole[name], warmup[name]), name
    assert not warmup.discriminator_loss.requires_grad
    assert warmup.loss.item() == 2 * warmup.generator_loss.item() != whole.loss.item()


def test_the_warm_up_gives_the_generator_the_gradient_of_masked_language_modeling(release, tokenizer, batches):
    gradients, norms = [], []
    for weight, generator_only in ((0.0, False), (50.0, True)):
        torch.manual_seed(7)
        model = load_released(str(release), tokenizer, discriminator_weight=weight).train()
        torch.manual_seed(0)
        model(**batches[0], generator_only=generator_only).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in own_weights(model).items()})
        WARMUP.drop_gradients(model)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    expected = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm().item()
    assert norms == pytest.approx([expected, expected], rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_the_warm_up_works_in_a_process_group(release, tokenizer, batches):
    """Which waits for a gradient of each parameter, and fails in the step after if one does not come."""
    models = []
    for is_wrapped in (False, True):
        torch.manual_seed(7)
        model = load_released(str(release), tokenizer)
        wrapped = DistributedDataParallel(model) if is_wrapped else None
        train(model, make_optimizer(model), batches[:6], wrapped=wrapped)
        models.append(model)
    assert_equal_weights(*models)


@pytest.mark.usefixtures("process_group")
def test_masked_modeling_alone_leaves_the_discriminator_as_it_is_in_a_process_group(release, tokenizer, batches):
    model = load_released(str(release), tokenizer, discriminator_weight=0.0)
    model.freeze_discriminator()
    before = deepcopy(dict(model.named_parameters()))
    train(model, make_optimizer(model), batches[:6], wrapped=DistributedDataParallel(model))
    of_generator = {id(parameter) for parameter in model.generator.parameters()}
    moved = {name: id(p) in of_generator for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(moved.values())


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_run_that_is_cut_in_or_after_the_warm_up_ends_as_one_that_is_not(release, tokenizer, batches, cut):
    torch.manual_seed(7)
    whole = load_released(str(release), tokenizer)
    train(whole, make_optimizer(whole), batches[:6])
    torch.manual_seed(7)
    first = load_released(str(release), tokenizer)
    optimizer = make_optimizer(first)
    train(first, optimizer, batches[:cut])
    second = load_released(str(release), tokenizer)  # another generator
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, batches[cut:6], start=cut)
    assert_equal_weights(second, whole)


def test_the_trainer_leaves_the_discriminator_as_it_is_and_then_begins_again(
    release, original, tokenizer, sample_file, tmp_path
):
    for num_updates, moves in ((4, False), (5, True)):  # the rate of the fourth is 0
        trainer = make_trainer(
            tokenizer,
            sample_file,
            tmp_path,
            model=load_released(str(release), tokenizer),
            max_steps=num_updates,
            generator_warmup_steps=3,
            gradient_accumulation_steps=2,
            weight_decay=0.1,
        )
        before = {name: weight.detach().clone() for name, weight in own_weights(trainer.model).items()}
        trainer.train()
        ours, theirs = trainer.model.discriminator.state_dict(), original.discriminator.state_dict()
        assert [torch.equal(ours[name], theirs[name]) for name in ours] == [not moves] * len(ours)
        assert not any(torch.equal(weight, before[name]) for name, weight in own_weights(trainer.model).items())
    logged = [entry for entry in trainer.state.log_history if "generator_loss" in entry]
    assert [entry["learning_rate"] for entry in logged[:4]] == [0.0, 0.5e-3, 1e-3, 0.0]
    assert all(0 < entry["discriminator_auc"] < 1 and 0 < entry["discriminator_loss"] for entry in logged)
    assert [entry["loss"] for entry in logged[:3]] == pytest.approx([entry["generator_loss"] for entry in logged[:3]])
    assert logged[3]["loss"] > 2 * logged[3]["generator_loss"]
    sizes = {"max_length": 64, "num_masked": trainer.data_collator.num_masked(64)}
    part, whole = (
        training_flops_per_row(trainer.model.config, **sizes, is_discriminator_frozen=is_frozen)
        for is_frozen in (True, False)
    )
    assert part < 0.8 * whole
    flops = [entry["flops_per_token"] for entry in logged[:4]]
    assert flops == pytest.approx([part / 64] * 3 + [whole / 64], rel=0.05)  # of rows that are nearly full


def test_the_trainer_gives_the_discriminator_no_graph_and_alone_no_gradient_in_the_warm_up(
    release, tokenizer, sample_file, tmp_path, batches
):
    model = load_released(str(release), tokenizer).train()
    trainer = make_trainer(tokenizer, sample_file, tmp_path, model=model, generator_warmup_steps=3)
    trainer.current_gradient_accumulation_steps = 1
    loss, output = trainer.compute_loss(model, batches[0], return_outputs=True)
    loss.backward()
    shared = {id(parameter) for parameter in model.generator.parameters()}
    assert all((parameter.grad is not None) == (id(parameter) in shared) for parameter in model.parameters())
    assert not output.discriminator_loss.requires_grad


# --- the schedule


def rates_of(schedule, num_steps, cut=None):
    """Return the learning rates that a run sees, one that is resumed at `cut` from what was saved of its schedule."""
    rates, state = [], None
    for start, stop in ((0, num_steps),) if cut is None else ((0, cut), (cut, num_steps)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = LambdaLR(optimizer, schedule)
        if state is not None:
            scheduler.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
        for _ in range(start, stop):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        state = scheduler.state_dict()
    return rates


def stock_schedule(name, num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=num_steps).lr_lambdas[0]


@pytest.mark.parametrize("name", ["product", "linear", "cosine", "constant_with_warmup"])
def test_after_the_warm_up_of_the_generator_the_usual_schedule_begins_at_its_start(name):
    base = (
        (lambda step: product_schedule(step, warmup_steps=4, max_steps=20))
        if name == "product"
        else stock_schedule(name, 20)
    )
    schedule = GeneratorWarmup(10).schedule(base, warmup_steps=4)
    rates = rates_of(schedule, 30)
    assert rates[:10] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates[10:] == rates_of(base, 20) and rates[10] == 0.0
    for cut in (3, 10, 17):
        assert rates_of(schedule, 30, cut) == rates


def test_without_a_warm_up_of_the_generator_the_schedule_is_the_usual_one():
    base = stock_schedule("linear", 20)
    assert rates_of(GeneratorWarmup(0).schedule(base, warmup_steps=4), 20) == rates_of(base, 20)


def test_a_warm_up_of_the_generator_without_one_of_the_rate_is_at_the_peak_from_the_start():
    assert rates_of(GeneratorWarmup(3).schedule(lambda step: 0.5, warmup_steps=0), 4) == [1.0, 1.0, 1.0, 0.5]
