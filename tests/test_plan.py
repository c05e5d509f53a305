"""The plan of a run: its memory is what a step then takes, its numbers follow from what was given."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kcelectra import KcElectraConfig, KcElectraForPreTraining
from kcelectra.arguments import parse_args, read_preset
from kcelectra.corpus.build import build_corpus
from kcelectra.corpus.comments import CommentReader, read_texts
from kcelectra.errors import InputError
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.planning import DEVICES, count_parameters, estimate_memory
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.tokenization import save_tokenizer

ROOT = Path(__file__).parents[1]
SMALL = str(ROOT / "recipes/small/pretrain.yaml")


def train_step(model, optimizer, batches, *, is_bfloat16):
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            loss = model(**batch).loss
        loss.backward()
        del loss
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure_peak(config, *, num_rows, max_length, num_masked, precision, activation_checkpointing, num_batches=1):
    """Return the most bytes that the allocator had given out at a time in the second step."""
    model = KcElectraForPreTraining(config).train()
    if activation_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    input_ids = torch.randint(5, config.generator_config.vocab_size, (num_rows, max_length))
    positions = torch.arange(num_masked).expand(num_rows, -1).contiguous()
    batch = {
        "input_ids": input_ids,
        "masked_positions": positions,
        "masked_labels": input_ids.gather(1, positions),
        "document_ids": torch.ones_like(input_ids),
        "position_ids": torch.arange(max_length).expand(num_rows, -1).contiguous(),
        "token_type_ids": torch.zeros_like(input_ids),
    }
    options = {"is_bfloat16": precision == "bfloat16"}
    train_step(model, optimizer, [batch], **options)
    held = sum(parameter.nbytes for parameter in model.parameters()) * 3 + sum(each.nbytes for each in batch.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(model, optimizer, [batch] * num_batches, **options)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = held
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def check_memory(
    size, num_rows, max_length, precision, activation_checkpointing, *, vocab_size=8000, num_batches=1, within=0.15
):
    config = KcElectraConfig.from_size(size, vocab_size=vocab_size)
    given = {
        "num_rows": num_rows,
        "max_length": max_length,
        "num_masked": int(0.155 * max_length),
        "precision": precision,
        "activation_checkpointing": activation_checkpointing,
    }
    estimate = estimate_memory(config, **given, is_accumulated=num_batches > 1)
    measured = measure_peak(config, **given, num_batches=num_batches)
    share = sum(estimate.values()) / measured
    print(f"{size} {given}: {share:.3f} of {measured / 2**20:.0f} MiB")  # noqa: T201
    assert share == pytest.approx(1, abs=within)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_memory_is_what_a_step_then_takes(precision, activation_checkpointing):
    check_memory("tiny", 16, 64, precision, activation_checkpointing, within=0.08)


def test_the_memory_of_accumulation_is_what_a_step_then_takes():
    check_memory("tiny", 8, 64, "float32", False, num_batches=2, within=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize(
    ("size", "num_rows", "max_length"), [("small", 4, 128), ("small", 16, 128), ("small", 4, 512), ("base", 2, 512)]
)
def test_the_memory_of_published_sizes_is_what_a_step_then_takes(
    size, num_rows, max_length, precision, activation_checkpointing
):
    check_memory(size, num_rows, max_length, precision, activation_checkpointing, vocab_size=32000)


def test_parts_are_counted_where_they_are_made():
    config = KcElectraConfig.from_size("tiny", vocab_size=1200)
    given = {"num_rows": 8, "max_length": 64, "num_masked": 9}
    parts = estimate_memory(config, **given)
    num_parameters = count_parameters(config)["total"]
    assert parts["weights"] == pytest.approx(4 * num_parameters, rel=0.01)
    assert parts["optimizer"] == 8 * num_parameters
    more = estimate_memory(config, **{**given, "num_masked": 18})
    assert more["masked head"] - parts["masked head"] == pytest.approx(8 * 9 * 1200 * 4, rel=0.05)
    assert estimate_memory(config, **given, fuses_attention=True)["attention"] < 0.9 * parts["attention"]
    assert estimate_memory(config, **given, activation_checkpointing=True)["attention"] < 0.5 * parts["attention"]


def test_shared_parameters_are_counted_once():
    config = KcElectraConfig.from_size("tiny", vocab_size=1200)
    counts, model = count_parameters(config), KcElectraForPreTraining(config)
    assert counts["total"] == model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert counts["shared"] == sum(
        p.numel() for p in {*model.generator.parameters()} & {*model.discriminator.parameters()}
    )


# the recipe


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("plan_recipe", ROOT / "recipes/plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plan(recipe, monkeypatch, capsys):
    """Run the recipe, and return what it prints: a line under its first word."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plan.py", *arguments])
        recipe.main()
        return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())

    return run


SHORT = "--size tiny --max_steps 100 --per_device_train_batch_size 4 --max_length 64".split()


def test_a_preset_is_planned_without_data_where_the_size_of_the_corpus_is_given(plan):
    printed = plan(SMALL, "--num_tokens", "1e9", "--device", "h100", "--per_device_train_batch_size", "64")
    assert printed["run"] == "1,000,000 steps of 64 rows of 128 tokens, 8,192,000,000 tokens"
    assert printed["corpus"] == "1,000,000,000 tokens (given), 8.19 passes"
    config = KcElectraConfig.from_size("small", vocab_size=30000)
    operations = training_flops_per_row(config, max_length=128, num_masked=19) / 128
    assert printed["operations"] == f"{operations:.4g} a token, {operations * 8.192e9:.4g} in the run"
    days = operations * 8.192e9 / (0.3 * 989e12) / 86400
    assert printed["time"].startswith(
        f"{days:.2f} days on 1 x NVIDIA H100 SXM at 30% of 989 TFLOP/s in bfloat16 (assum"
    )
    assert printed["price"] == f"${days * 24 * 3:,.0f} at $3 an hour each (assumption)"


def test_more_devices_take_more_rows_unless_the_step_is_given(plan):
    given = (*SHORT, "--num_tokens", "1e9", "--device", "tpu-v5e-8", "--num_devices", "2")
    assert plan(*given)["run"].startswith("100 steps of 64 rows of 64 tokens")
    assert plan(*given, "--total_train_batch_size", "32")["run"].startswith("100 steps of 32 rows")
    cores = plan(*given[:-4], "--device", "cpu", "--num_devices", "2")
    assert cores["run"].startswith("100 steps of 4 rows") and " of 0.14 TFLOP/s in float32 (measured" in cores["time"]


def test_without_a_preset_the_run_is_planned_that_pretraining_would_start(plan):
    preset = read_preset(ROOT / "recipes/smoke/pretrain.yaml")
    steps, rows = preset["max_steps"], preset["per_device_train_batch_size"]
    run = plan("--device", "cpu", "--num_tokens", "1e9")["run"]
    assert run.startswith(f"{steps} steps of {rows} rows of {preset['max_length']} tokens")


def test_time_and_price_follow_what_is_given(recipe):
    given = recipe.PlanArguments(device="tpu-v3-8", num_devices=2, mfu=0.5, dollars_per_hour=100)
    lines = recipe.describe_time(24 * 3600 * 492e12, DEVICES["tpu-v3-8"], given)  # a day at the peak of one
    assert lines == (
        "time: 1.00 days on 2 x TPU v3-8 at 50% of 492 TFLOP/s in bfloat16 (given)\n"
        "price: $4,800 at $100 an hour each (given)"
    )


def test_what_does_not_fit_is_said_with_what_to_type(recipe):
    parts = {"weights": 2**30, "attention": 13 * 2**30}
    assert "WARNING" not in recipe.describe_memory(parts, DEVICES["t4"])
    warned = recipe.describe_memory({**parts, "attention": 15 * 2**30}, DEVICES["t4"])
    assert warned.startswith("memory of each device: 16.0 of 16 GiB, ")
    assert "WARNING: it does not fit; give a lower --per_device_train_batch_size" in warned
    assert "--gradient_accumulation_steps, or --activation_checkpointing true" in warned
    assert "WARNING" not in recipe.describe_memory({"attention": 2**40}, DEVICES["cpu"])


def test_what_there_is_to_type_is_counted(plan):
    given = (*SHORT, "--num_tokens", "1e9", "--per_device_train_batch_size", "512")
    parts = plan(*given)["memory of each device"]
    assert float(plan(*given, "--activation_checkpointing", "true")["memory of each device"].split()[0]) < 0.5 * float(
        parts.split()[0]
    )


def test_tokens_are_those_of_packed_rows(plan, pack_here, tokenizer, sample_file, tmp_path):
    manifest = pack_here(CommentReader(str(sample_file)), tokenizer, tmp_path / "rows", max_length=64)
    num_tokens = manifest["counts"]["tokens"]
    printed = plan(*SHORT[:2], "--dataset", str(tmp_path / "rows"), "--max_steps", "-1", "--num_train_epochs", "2")
    assert printed["corpus"].startswith(f"{num_tokens:,} tokens (counted), 2.0") and " rows of 64 " in printed["run"]


def test_bytes_a_token_are_measured_on_the_comments(recipe, tokenizer, sample_file):
    data = DataArguments(dataset=str(sample_file))
    counted, basis = recipe.count_tokens(recipe.PlanArguments(), data, tokenizer, None)
    texts = list(read_texts(CommentReader(str(sample_file)), rules="v2022", min_chars=10))
    assert (counted, basis) == (sum(map(len, tokenizer(texts)["input_ids"])), "counted")
    tenfold = recipe.PlanArguments(corpus_gb=10 * sum(len(text.encode()) for text in texts) / 1e9)
    scaled, basis = recipe.count_tokens(tenfold, data, tokenizer, None)
    assert scaled == pytest.approx(10 * counted, rel=1e-6) and basis.startswith("measured: ")
    assumed, basis = recipe.count_tokens(tenfold, data, None, None)
    assert assumed == round(tenfold.corpus_gb * 1e9 / 5.05) and basis.startswith("assumption: ")


def test_a_built_corpus_is_counted_by_its_characters(recipe, tokenizer, sample_file, tmp_path, monkeypatch):
    build_corpus(str(sample_file), tmp_path / "corpus", num_workers=1)
    data = DataArguments(dataset=str(tmp_path / "corpus"))
    counted, _ = recipe.count_tokens(recipe.PlanArguments(), data, tokenizer, None)
    monkeypatch.setattr(recipe, "NUM_SAMPLED", 500)
    estimated, basis = recipe.count_tokens(recipe.PlanArguments(), data, tokenizer, None)
    assert estimated == pytest.approx(counted, rel=0.05) and basis.startswith("estimated: ")
    data = DataArguments(dataset=str(sample_file))
    with pytest.raises(InputError, match="has more than 500 comments; say how large it is: --corpus_gb"):
        recipe.count_tokens(recipe.PlanArguments(), data, tokenizer, None)


def test_what_is_frozen_takes_no_memory_for_its_gradients():
    options = {"num_rows": 4, "max_length": 64, "num_masked": 9}
    config = KcElectraConfig.from_size("tiny", vocab_size=2000, generator_fraction=1.0, embedding_sharing="gdes")
    whole, frozen = (estimate_memory(config, **options, is_generator_frozen=is_frozen) for is_frozen in (False, True))
    config.discriminator_weight = 0
    alone = estimate_memory(config, **options)
    for each in (frozen, alone):
        assert 0 < each["optimizer"] < whole["optimizer"] and sum(each.values()) < sum(whole.values())


def test_a_precision_of_another_device_can_be_planned(plan):
    printed = plan(*SHORT, "--num_tokens", "1e6", "--device", "h100", "--precision", "float16")
    assert printed["WARNING"] == "the time is of bfloat16; give the --mfu of float16, as a share of that peak"
    assert "WARNING" not in plan(*SHORT, "--num_tokens", "1e6", "--device", "h100", "--precision", "bfloat16")


def test_comments_that_are_all_too_short_cannot_be_planned(plan, tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("짧다\n" * 5, encoding="utf-8")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    with pytest.raises(InputError, match="short.txt has no comment of at least 10 characters; give more"):
        plan(*SHORT, "--dataset", str(tmp_path / "short.txt"), "--tokenizer", str(tmp_path / "tokenizer"))


def test_what_cannot_be_planned_is_named(plan):
    with pytest.raises(InputError, match="how large is the corpus"):
        plan(*SHORT)
    with pytest.raises(InputError, match="no file matches"):
        plan(SMALL)
    with pytest.raises(InputError, match="num_tokens is -5.0; give the size of the corpus"):
        plan(SMALL, "--num_tokens", "-5")
    with pytest.raises(InputError, match="corpus_gb is 0.0; give the size of the corpus"):
        plan(SMALL, "--corpus_gb", "0")
    with pytest.raises(InputError, match="device is 'h300'; use one of h100, "):
        plan(*SHORT, "--device", "h300")
    for words in (("--mfu", "30"), ("--mfu", "0"), ("--num_devices", "0")):
        with pytest.raises(InputError, match="give at least one, and a share such as 0.3"):
            plan(*SHORT, *words)


@pytest.mark.parametrize("page", ["recipes/README.md", "recipes/plan.py"])
def test_every_command_is_one_that_the_recipe_understands(recipe, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^ *python recipes/plan.py (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        *_, plan_args = parse_args(
            ModelArguments, DataArguments, PretrainingArguments, recipe.PlanArguments, argv=command.split()
        )
        assert plan_args.device in command


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_says_where_its_utilisation_is_from(device):
    assert DEVICES[device].basis.startswith(("measured", "reported", "assumption"))
    assert 0 < DEVICES[device].utilisation < 1
