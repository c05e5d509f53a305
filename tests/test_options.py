"""Training options with published evidence: what each computes, and that it is saved, exported and resumed."""

import importlib.util
import json
import math
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from test_continuing import copy_half
from test_modeling import COMPILES
from test_trainer import assert_equal_weights, make_trainer, weights
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from transformers import ElectraForMaskedLM, ElectraForPreTraining, TrainingArguments

from kcelectra import (
    DataCollatorForReplacedTokenDetection,
    KcElectraConfig,
    KcElectraForPreTraining,
    export_checkpoint,
)
from kcelectra.arguments import given_settings, parse_args
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.continuing import GeneratorWarmup, load_released
from kcelectra.pretraining.export import export_model
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.growing import grow_vocabulary
from kcelectra.pretraining.health import HealthCallback
from kcelectra.pretraining.masked_head import masked_language_modeling
from kcelectra.pretraining.optimization import falling_temperature
from kcelectra.pretraining.run import lock_run_dir
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.pretraining.training_arguments import PretrainingArguments

ROOT = Path(__file__).parents[1]
LENGTH = 64
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
IDS = torch.randint(5, 400, (2, 12), generator=torch.Generator().manual_seed(0))


def make_model(tokenizer, sharing="gdes", *, is_moved=False, **overrides):
    """Return a model; `is_moved`: no weight has the value that it is initialised with."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 80, **overrides}
    model = KcElectraForPreTraining(
        KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), embedding_sharing=sharing, **sizes)
    )
    if is_moved:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def batches(tokenizer, sample_file):
    rows = list(PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=LENGTH, num_passes=1))
    return [DataCollatorForReplacedTokenDetection(tokenizer)(rows[start : start + 4]) for start in range(0, 16, 4)]


@pytest.fixture(scope="module")
def release(tokenizer, tmp_path_factory):
    """A released pair whose embeddings differ in every value."""
    directory = tmp_path_factory.mktemp("release")
    export_model(make_model(tokenizer, "full", is_moved=True), tokenizer, directory / "export")
    copy_half(directory / "export", directory / "other", "discriminator", move)
    return directory


def move(state):
    for name in state:
        state[name] = state[name] + 0.1 * torch.rand_like(state[name])


def run_seeded(model, batch, **options):
    torch.manual_seed(3)
    return model(**batch, **options)


def words_of(model):
    return model.discriminator.electra.embeddings.word_embeddings


def delta_names(model):
    return {name for name, _ in model.named_parameters() if ".delta." in name}


# --- gradient-disentangled embedding sharing


def test_a_model_begins_with_the_weights_and_the_output_of_full_sharing(tokenizer, batches):
    full, gdes = make_model(tokenizer, "full"), make_model(tokenizer)
    theirs = dict(full.named_parameters(remove_duplicate=False))
    for name, parameter in gdes.named_parameters():
        assert torch.equal(parameter, torch.zeros_like(parameter) if ".delta." in name else theirs[name]), name
    ours, others = (run_seeded(model, batches[0]) for model in (gdes, full))
    assert all(torch.equal(ours[name], others[name]) for name in others)


def test_each_loss_gives_a_gradient_to_the_weights_of_its_half_alone(tokenizer, batches):
    """And the difference gets what the discriminator's loss gives a table that is shared in full."""
    gradients = {}
    for sharing in ("full", "gdes"):
        for loss in ("generator_loss", "discriminator_loss"):
            model = make_model(tokenizer, sharing)
            run_seeded(model, batches[0])[loss].backward()
            gradients[sharing, loss] = {
                name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
            }
    of_generator, of_discriminator = (gradients["gdes", f"{half}_loss"] for half in ("generator", "discriminator"))
    parameters = dict(make_model(tokenizer).named_parameters())
    assert of_generator.keys() == {name for name in parameters if name.startswith("generator.")}
    assert of_discriminator.keys() == {name for name in parameters if name.startswith("discriminator.")}
    for table in TABLES:
        name = f"discriminator.electra.embeddings.{table}"
        assert of_discriminator[f"{name}.delta.weight"].any()
        expected = gradients["full", "discriminator_loss"][f"{name}.weight"]
        assert torch.equal(of_discriminator[f"{name}.delta.weight"], expected)


def test_the_export_is_the_sum_in_plain_models_without_a_key_too_many_or_too_few(tokenizer, tmp_path):
    model = make_model(tokenizer, is_moved=True)
    model.save_pretrained(tmp_path / "checkpoint-1")
    tokenizer.save_pretrained(tmp_path / "checkpoint-1")
    export_checkpoint(tmp_path / "checkpoint-1", tmp_path / "export")
    for half, plain in (("discriminator", ElectraForPreTraining), ("generator", ElectraForMaskedLM)):
        loaded, info = plain.from_pretrained(tmp_path / "export" / half, output_loading_info=True)
        assert not any(info.values()), info
        assert torch.equal(loaded.eval()(IDS).logits, getattr(model, half)(IDS).logits)
    tables = load_file(tmp_path / "export/discriminator/model.safetensors")
    for table in TABLES:
        shared = getattr(model.generator.electra.embeddings, table).weight
        delta = getattr(model.discriminator.electra.embeddings, table).delta.weight
        assert delta.any() and torch.equal(tables[f"electra.embeddings.{table}.weight"], shared + delta)


def test_a_checkpoint_holds_table_and_difference_once_and_loads_bit_for_bit(tokenizer, tmp_path):
    model = make_model(tokenizer, is_moved=True)
    model.save_pretrained(tmp_path)
    loaded, info = KcElectraForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_equal_weights(dict(loaded.named_parameters()), dict(model.named_parameters()))
    assert len(delta_names(loaded)) == len(TABLES)
    assert loaded.generator.generator_lm_head.weight is loaded.get_input_embeddings().weight
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    assert torch.equal(loaded.eval().discriminator(IDS).logits, model.discriminator(IDS).logits)


def test_resizing_and_new_tokens_keep_the_sum_of_the_others(tokenizer, tmp_path):
    model = make_model(tokenizer, is_moved=True)
    before = words_of(model).weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer) + 7)
    assert torch.equal(words_of(model).weight[: len(before)], before)
    assert not words_of(model).delta.weight[len(before) :].any()
    model.resize_token_embeddings(len(tokenizer))
    assert torch.equal(words_of(model).weight, before)
    grown = grow_vocabulary(model, tokenizer, ["존잼존잼"])
    pieces = tokenizer("존잼존잼", add_special_tokens=False)["input_ids"]
    mean = words_of(model).weight[grown.get_vocab()["존잼존잼"]]
    torch.testing.assert_close(mean, before[pieces].mean(dim=0))
    export_model(model, grown, tmp_path / "export")
    loaded = ElectraForPreTraining.from_pretrained(tmp_path / "export/discriminator").eval()
    assert torch.equal(loaded(IDS).logits, model.discriminator(IDS).logits)


def test_a_released_pair_whose_embeddings_differ_goes_on_as_it_is(release, tokenizer):
    paths = {"discriminator": str(release / "other"), "generator": str(release / "export")}
    with pytest.raises(InputError, match="--embedding_sharing gdes"):
        load_released(paths["discriminator"], tokenizer, generator=paths["generator"])
    model = load_released(paths["discriminator"], tokenizer, generator=paths["generator"], embedding_sharing="gdes")
    discriminator = ElectraForPreTraining.from_pretrained(release / "other")
    generator = ElectraForMaskedLM.from_pretrained(release / "export/generator")
    torch.testing.assert_close(model.eval().discriminator(IDS).logits, discriminator(IDS).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(words_of(model).weight, discriminator.get_input_embeddings().weight, rtol=0, atol=1e-7)
    assert torch.equal(model.generator(IDS).logits, generator(IDS).logits)
    with pytest.raises(InputError, match="leave out --init_embeddings"):
        load_released(**paths, tokenizer=tokenizer, embeddings="generator", embedding_sharing="gdes")


def test_a_half_that_is_new_reads_the_embeddings_of_the_released_one(release, tokenizer):
    released = ElectraForPreTraining.from_pretrained(release / "other").eval()
    model = load_released(str(release / "other"), tokenizer, embedding_sharing="gdes").eval()
    assert torch.equal(model.discriminator(IDS).logits, released(IDS).logits)
    assert torch.equal(model.get_input_embeddings().weight, released.get_input_embeddings().weight)
    generator = ElectraForMaskedLM.from_pretrained(release / "export/generator").eval()
    for sharing in ("gdes", "full"):
        config = KcElectraConfig.from_size("small", vocab_size=9, num_hidden_layers=1).discriminator_config
        model = load_released(config, tokenizer, generator=str(release / "export"), embedding_sharing=sharing).eval()
        assert torch.equal(model.generator(IDS).logits, generator(IDS).logits)
        ours, theirs = model.discriminator.electra.embeddings, generator.electra.embeddings
        assert torch.equal(ours(IDS), theirs(IDS))
        assert model.discriminator.config.hidden_size == 256


def test_a_warm_up_of_the_generator_moves_no_table_that_the_discriminator_reads(release, tokenizer, batches):
    model = load_released(str(release / "other"), tokenizer, embedding_sharing="gdes").eval()
    before = model.discriminator(IDS).logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    run_seeded(model, batches[0], generator_only=True).loss.backward()
    GeneratorWarmup(1).drop_gradients(model)
    optimizer.step()
    assert torch.equal(model.discriminator(IDS).logits, before)


def test_the_difference_decays_as_a_table_does(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path, model=make_model(tokenizer))
    assert delta_names(trainer.model) <= set(trainer.get_decay_parameter_names(trainer.model))


def test_an_unknown_sharing_is_named(tokenizer):
    with pytest.raises(InputError, match="'none'; use full or gdes"):
        make_model(tokenizer, "none")


# --- depth of the generator


def test_the_generator_may_be_as_wide_and_half_as_deep_as_in_deberta_v3(tokenizer):
    options = {"generator_fraction": 1.0, "generator_layers": 6}
    config = KcElectraConfig.from_size("small", vocab_size=len(tokenizer), **options)
    assert (config.generator_config.num_hidden_layers, config.generator_config.hidden_size) == (6, 256)
    assert config.discriminator_config.num_hidden_layers == 12
    continued = KcElectraConfig.from_discriminator(config.discriminator_config, **options)
    assert continued.generator_config.num_hidden_layers == 6
    assert KcElectraConfig.from_discriminator(config.discriminator_config).generator_config.num_hidden_layers == 12
    per_layer = 3 * 2 * 128 * (4 * 256**2 + 2 * 128 * 256 + 2 * 256 * 1024)
    whole = KcElectraConfig.from_size("small", vocab_size=len(tokenizer), generator_fraction=1.0)
    flops = [training_flops_per_row(each, max_length=128, num_masked=19) for each in (whole, config)]
    assert flops[0] - flops[1] == 6 * per_layer
    with pytest.raises(InputError, match="generator_layers is 0; give at least 1"):
        KcElectraConfig.from_size("small", vocab_size=len(tokenizer), generator_layers=0)


# --- warm-up, stable, decay


@pytest.mark.parametrize(
    ("num_held", "num_decay_steps", "given"), [(0, 2, {}), (0, 8, {"num_decay_steps": 8}), (9, 2, {})]
)
def test_the_rate_stays_at_its_peak_and_falls_as_one_minus_a_root(
    tokenizer, sample_file, tmp_path, num_held, num_decay_steps, given
):
    """From its beginning again once a generator is warmed up."""
    options = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": json.dumps(given)}
    trainer = make_trainer(tokenizer, sample_file, tmp_path, generator_warmup_steps=num_held, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = trainer.create_scheduler(num_held + 20, optimizer)
    rates = [scheduler.lr_lambdas[0](step) for step in range(num_held + 21)]
    rising, stable = [0.0, 0.5], [1.0] * (20 - 2 - num_decay_steps)
    falling = [1 - math.sqrt(step / num_decay_steps) for step in range(num_decay_steps + 1)]
    assert rates[num_held:] == pytest.approx([*rising, *stable, *falling])
    assert rates[:num_held] == [*rising, *[1.0] * 7][:num_held]


def test_the_schedule_is_given_on_the_command_line_and_kept_in_the_settings_of_the_run(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--lr_scheduler_type", "warmup_stable_decay"]
    words += ["--lr_scheduler_kwargs", '{"num_decay_steps": 3}']
    (arguments,) = parse_args(PretrainingArguments, argv=words)
    assert arguments.lr_scheduler_kwargs == {"num_decay_steps": 3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given_settings(arguments, argv=words)))
    (again,) = parse_args(PretrainingArguments, argv=[str(tmp_path / "run.yaml")])
    assert again.lr_scheduler_kwargs == {"num_decay_steps": 3}
    assert again.lr_scheduler_type == arguments.lr_scheduler_type


# --- a frozen generator


def test_a_frozen_generator_keeps_every_bit_and_the_discriminator_learns_from_its_loss_alone(
    tokenizer, sample_file, tmp_path
):
    model = make_model(tokenizer)
    trainer = make_trainer(tokenizer, sample_file, tmp_path, model=model, frozen_generator=True, weight_decay=0.1)
    before, seen = weights(trainer), []
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(
            (module.generator.training, module.discriminator.training, inputs["sampling_temperature"])
        ),
        with_kwargs=True,
    )
    trainer.train()
    after = weights(trainer)
    unmoved = {name for name in after if torch.equal(after[name], before[name])}
    assert unmoved == {name for name in after if name.startswith("generator.")}
    assert [(generator, discriminator) for generator, discriminator, _ in seen] == [(False, True)] * 6
    temperatures = [float(temperature) for *_, temperature in seen]
    assert temperatures == pytest.approx([1 + math.exp(-step / 0.6) for step in range(6)])
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.discriminator.parameters()}
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(50 * entry["discriminator_loss"])
        assert entry["generator_loss"] > 1


def test_the_temperature_falls_from_its_start_to_one():
    falling = [falling_temperature(step, max_steps=100, initial=2.0) for step in range(101)]
    assert falling[0] == 2.0 and falling[10] == pytest.approx(1 + math.exp(-1))
    assert falling == sorted(falling, reverse=True) and falling[-1] == pytest.approx(1.0, abs=1e-4)


def test_a_temperature_changes_what_is_drawn_and_nothing_else(tokenizer, batches):
    model = make_model(tokenizer, is_moved=True)
    plain, one, hot = (
        run_seeded(model, batches[0], **({} if t is None else {"sampling_temperature": torch.tensor(t)}))
        for t in (None, 1.0, 50.0)
    )
    assert torch.equal(plain.sampled_ids, one.sampled_ids) and not torch.equal(plain.sampled_ids, hot.sampled_ids)
    assert plain.generator_loss == one.generator_loss == hot.generator_loss
    model.config.sampling_temperature = 50.0
    assert torch.equal(run_seeded(model, batches[0]).sampled_ids, hot.sampled_ids)


def test_the_masked_head_of_a_frozen_generator_computes_no_gradient_and_the_same_values(monkeypatch):
    hidden, weight, bias, labels = (
        torch.randn(6, 8),
        torch.randn(30, 8),
        torch.randn(30),
        torch.tensor([-100] + [3] * 5),
    )
    outputs, scattered = [], []
    scatter = torch.Tensor.scatter_add_
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *args: scattered.append(1) or scatter(*args))
    for is_trained in (True, False):
        torch.manual_seed(0)
        outputs.append(masked_language_modeling(hidden, weight.requires_grad_(is_trained), bias, labels))
        assert len(scattered) == 1
    assert all(torch.equal(*values) for values in zip(*outputs, strict=True))
    assert outputs[0][0].requires_grad and not outputs[1][0].requires_grad


@pytest.mark.usefixtures("process_group")
def test_a_frozen_generator_works_in_a_process_group(tokenizer, batches):
    model = make_model(tokenizer)
    model.freeze_generator()
    wrapped = DistributedDataParallel(model).train()
    for batch in batches[:3]:  # a parameter without a gradient fails in the step after
        wrapped(**batch, sampling_temperature=torch.tensor(2.0)).loss.backward()
    assert {p.grad is not None for p in model.discriminator.parameters()} == {True}
    assert {p.grad for p in model.generator.parameters()} == {None}


def test_a_frozen_generator_counts_its_forward_pass_alone(tokenizer):
    config = make_model(tokenizer).config
    sizes = {"max_length": LENGTH, "num_masked": 9}
    trained = training_flops_per_row(config, **sizes)
    frozen = training_flops_per_row(config, **sizes, is_generator_frozen=True)
    generator, vocabulary = config.generator_config, config.generator_config.vocab_size
    per_token = 4 * 64**2 + 2 * LENGTH * 64 + 2 * 64 * 256 + 128 * 64
    assert generator.hidden_size == 64 and generator.embedding_size == 128
    assert trained - frozen == 2 * (2 * LENGTH * per_token + 9 * 2 * (64 * 128 + 128 * vocabulary))


def test_a_generator_whose_embeddings_would_move_cannot_be_frozen(tokenizer):
    with pytest.raises(InputError, match="give --embedding_sharing gdes"):
        make_model(tokenizer, "full").freeze_generator()


# --- short rows first


def test_short_rows_compute_what_their_documents_compute_apart(tokenizer, sample_file):
    """Two rows of half the length, put together and cut where they were, give what they gave."""
    rows = islice(PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=32, num_passes=1), 4)
    short = DataCollatorForReplacedTokenDetection(tokenizer)(list(rows))
    whole = {name: value.view(2, -1) for name, value in short.items() if name != "row_id"}
    second_half = torch.arange(whole["masked_positions"].shape[1]) >= short["masked_positions"].shape[1]
    whole["masked_positions"] = whole["masked_positions"] + 32 * second_half
    model = make_model(tokenizer, is_moved=True)
    expected, cut = run_seeded(model, short), run_seeded(model, whole, short_length=32)
    uncut = run_seeded(model, whole)
    for name in ("generator_loss", "discriminator_loss"):
        torch.testing.assert_close(cut[name], expected[name])
    torch.testing.assert_close(cut.discriminator_logits.view(4, -1), expected.discriminator_logits)
    assert torch.equal(cut.sampled_ids.view(4, -1), expected.sampled_ids)
    assert not torch.allclose(uncut.discriminator_logits, cut.discriminator_logits)  # documents 1 of both halves meet


def test_a_cut_document_keeps_its_tokens_and_positions_and_sees_its_part_alone(tokenizer, batches):
    model, batch = make_model(tokenizer, is_moved=True), dict(batches[0])
    seen = []
    model.discriminator.electra.embeddings.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs), with_kwargs=True
    )
    before = run_seeded(model, batch, short_length=16)
    assert seen[0]["input_ids"].shape == (4 * LENGTH // 16, 16)
    assert torch.equal(seen[0]["position_ids"].view(4, -1), batch["position_ids"])
    ids = batch["input_ids"].clone()
    ids[:, 16:32] = 7
    after = run_seeded(model, {**batch, "input_ids": ids}, short_length=16)
    is_same = (before.discriminator_logits == after.discriminator_logits).view(4, -1, 16).all(2).all(0)
    assert is_same[[0]].all() and not is_same[1]


def test_the_first_share_of_the_steps_sees_short_rows_and_as_many_tokens(tokenizer, sample_file, tmp_path):
    model, seen = make_model(tokenizer), []
    model.generator.electra.embeddings.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    options = {"short_length": 32, "short_length_steps": 0.6, "max_steps": 5}
    trainer = make_trainer(tokenizer, sample_file, tmp_path, model=model, **options)
    trainer.train()
    assert [tuple(shape[:2]) for shape in seen] == [(8, 32)] * 3 + [(4, LENGTH)] * 2
    sizes = {"max_length": LENGTH, "num_masked": int(0.155 * LENGTH)}
    flops = [training_flops_per_row(model.config, **sizes, num_seen=num_seen) for num_seen in (32, LENGTH)]
    assert trainer.state.total_flos == 4 * (3 * flops[0] + 2 * flops[1])


# --- all of them


OPTIONS = {
    "gdes": {},
    "frozen": {"frozen_generator": True},
    "short": {"short_length": 32, "short_length_steps": 3},
    "stable": {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": '{"num_decay_steps": 3}'},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_that_is_cut_ends_with_the_bits_of_one_that_is_not(option, tokenizer, sample_file, tmp_path):
    options = {**OPTIONS[option], "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tokenizer, sample_file, tmp_path / "whole", model=make_model(tokenizer), **options)
    whole.train()
    for cut in (2, 3, 4) if option == "short" else (4,):  # before, at and after the border
        resumed = make_trainer(tokenizer, sample_file, tmp_path / f"{cut}", model=make_model(tokenizer), **options)
        with torch.no_grad():
            for parameter in resumed.model.parameters():
                parameter.zero_()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{cut}"))
        assert_equal_weights(weights(resumed), weights(whole))
        logs = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (whole, resumed)]
        assert len(logs[0]) == 6 and logs[0] == logs[1]


@COMPILES
def test_compiled_parts_see_each_temperature_without_a_new_compilation_and_two_lengths_with_one(tokenizer, batches):
    torch._dynamo.reset()  # what other tests compiled counts against its limit
    backend = CompileCounterWithBackend("aot_eager")
    model = make_model(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.freeze_generator()
    expected = run_seeded(model.train(), batches[0], sampling_temperature=torch.tensor(1.5))
    expected.loss.backward()
    gradients = [p.grad.clone() for p in model.discriminator.parameters()]
    model.zero_grad()
    model.compile_parts(backend=backend)
    actual = run_seeded(model, batches[0], sampling_temperature=torch.tensor(1.5))
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, expected.loss)
    for parameter, gradient in zip(model.discriminator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    counts = []
    for temperature, length in ((1.4, None), (1.3, None), (1.3, 32), (1.2, 32), (1.1, None)):
        run_seeded(model, batches[1], sampling_temperature=torch.tensor(temperature), short_length=length)
        counts.append(backend.frame_count)
    num_graphs = counts[0]
    assert counts[1] == num_graphs < counts[2] == counts[3] == counts[4] < 2 * num_graphs


# --- through the recipe


def run_recipe(monkeypatch, *words):
    spec = importlib.util.spec_from_file_location("pretrain_recipe", ROOT / "recipes/pretrain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    short = "--max_steps 2 --save_steps 1 --logging_steps 1 --per_device_train_batch_size 2 --max_length 64".split()
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *short, "--use_cpu", "true", *map(str, words)])
    module.main()


def test_a_run_that_another_process_trains_is_refused_and_one_that_is_not_says_all_its_arguments(
    monkeypatch, sample_file, tmp_path
):
    words = ["--dataset", sample_file, "--output_dir", tmp_path / "run", "--vocab_size", "2000"]
    run_recipe(monkeypatch, *words)
    arguments = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["arguments"]
    assert (arguments["size"], arguments["vocab_size"], arguments["max_steps"]) == ("tiny", 2000, 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with lock_run_dir(tmp_path / "run"), pytest.raises(InputError, match="another process trains .*run; end that one"):
        run_recipe(monkeypatch, *words)


@pytest.mark.parametrize("launched_with", ["bf16", "fp16"])
def test_the_precision_that_is_asked_for_holds_whatever_the_launcher_was_told(
    monkeypatch, tokenizer, sample_file, tmp_path, launched_with
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched_with)
    trainer = make_trainer(tokenizer, sample_file, tmp_path, use_cpu=True, precision="float32")
    assert trainer.accelerator.mixed_precision == "no"


def test_one_process_drives_one_gpu_however_many_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    assert PretrainingArguments(str(tmp_path), use_cpu=True)._n_gpu == 1


def test_the_alarms_of_a_run_know_the_warm_up_of_its_generator(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path, generator_warmup_steps=3)
    (callback,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, HealthCallback)]
    assert callback.generator_warmup_steps == 3


def test_a_new_discriminator_is_trained_with_a_released_generator_that_is_frozen(
    monkeypatch, release, sample_file, tmp_path, capsys
):
    options = {
        "dataset": sample_file,
        "output_dir": tmp_path / "run",
        "init_generator": release / "export/generator",
        "frozen_generator": "true",
        "embedding_sharing": "gdes",
        "short_length": 32,
        "lr_scheduler_type": "warmup_stable_decay",
    }
    run_recipe(monkeypatch, *(word for key, value in options.items() for word in (f"--{key}", value)))
    capsys.readouterr()
    ours = load_file(tmp_path / "run/export/generator/model.safetensors")
    theirs = load_file(release / "export/generator/model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    loaded, info = ElectraForPreTraining.from_pretrained(
        tmp_path / "run/export/discriminator", output_loading_info=True
    )
    assert not any(info.values()) and loaded.config.num_hidden_layers == 4


FROZEN = "--init_generator {} --frozen_generator true --embedding_sharing gdes".split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short_length", "48"], "short_length 48 does not divide rows of 64"),
        (["--frozen_generator", "true", "--embedding_sharing", "gdes"], "give a generator that is trained"),
        (["--init_generator", "{}", "--frozen_generator", "true"], "give --embedding_sharing gdes"),
        (["--init_generator", "{}", "--generator_layers", "2"], "leave out --generator_fraction and --generator_lay"),
        ([*FROZEN, "--generator_warmup_steps", "1"], "leaves nothing to train; leave one out"),
        ([*FROZEN, "--discriminator_weight", "0"], "leaves nothing to train; leave one out"),
        (["--precision", "float32", "--bf16", "true"], "precision is float32, and bfloat16 is asked for too"),
        (["--fp16", "true"], "precision is float16, which is for GPUs"),
        (["--shuffle_window", "0"], "shuffle_window is 0; give 1 or more"),
        (["--max_length", "0"], "max_length is 0; give 1 or more"),
        (["--save_steps", "0"], "save_steps is 0.*; give a number of steps, or a share"),
        (["--save_steps", "1.5"], "save_steps is 1.5; give a number of steps, or a share"),
        (["--logging_steps", "0"], "logging_steps is 0.*; give a number of steps, or a share"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; give 1 or more"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0; give 1 or more"),
        (["--seed", "-1"], "seed is -1; give 0 or more"),
        (["--input_timeout", "-1"], "input_timeout is -1; give 1 or more"),
        (["--generator_warmup_steps", "-2"], "generator_warmup_steps is -2; give 0 or more"),
        (["--auto_find_batch_size", "true"], "auto_find_batch_size loses count of the rows"),
        (["--save_strategy", "best"], "save_strategy is best, and a run goes on from its last"),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "cosine_with_min_lr does not take lr_scheduler_kwargs .*; give others",
        ),
        (
            ["--init_discriminator", "{}/../discriminator", "--resume_from_checkpoint", "x"],
            "give --generator_warmup_steps, as the run had that the checkpoint is of",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(monkeypatch, release, sample_file, tmp_path, options, message):
    words = [word.format(release / "export/generator") for word in options]
    with pytest.raises(InputError, match=message):
        run_recipe(monkeypatch, "--dataset", sample_file, "--output_dir", tmp_path / "run", *words)
