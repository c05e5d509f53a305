"""Say what a run will take, before anything starts: operations, passes, memory of a device, days and price.

    python recipes/plan.py recipes/base-v2022/pretrain.yaml --device h200 --dataset out/packed
    python recipes/plan.py recipes/small/pretrain.yaml --device tpu-v5e-8 --corpus_gb 45

Takes the presets and arguments of `recipes/pretrain.py`. The corpus is rows that `recipes/pack.py` wrote, one that
`recipes/build_corpus.py` wrote, comments, or a size: `--num_tokens`, or `--corpus_gb` of cleaned text, whose bytes per
token are measured where dataset and tokenizer are given.
"""

import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.comments import CommentReader, read_texts
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest
from kcelectra.precision import PRECISIONS
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.continuing import released_tokenizer
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.packed import PackedRows, is_packed
from kcelectra.pretraining.planning import DEVICES, Device, count_parameters, estimate_memory
from kcelectra.pretraining.run import build_config, build_model
from kcelectra.pretraining.run_arguments import DEFAULT_MAX_LENGTH, DEFAULT_VOCAB_SIZE, DataArguments, ModelArguments
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS, append_unused

BYTES_PER_TOKEN = 5.05  # measured: 627,850 comments, a vocabulary of 32,000, [CLS] and [SEP] of each counted
NUM_SAMPLED = 20_000  # comments that are tokenised
SHARE_OF_MEMORY = 0.9  # that may be used; assumption: the rest is the driver's, and in pieces too small
SMOKE_PRESET = Path(__file__).parent / "smoke" / "pretrain.yaml"  # what recipes/pretrain.py takes where none is given


@dataclass
class PlanArguments:
    """What the run is planned for."""

    device: str = field(default="h200", metadata={"help": f"One of {', '.join(DEVICES)}."})
    num_devices: int = field(default=1, metadata={"help": "So many of them; of a CPU, its cores."})
    mfu: float | None = field(
        default=None, metadata={"help": "Share of its peak that a device reaches, 0 to 1; by device if not given."}
    )
    dollars_per_hour: float | None = field(
        default=None, metadata={"help": "Of one device, or of a slice of a TPU; an assumption if not given."}
    )
    num_tokens: float | None = field(default=None, metadata={"help": "Tokens of the corpus."})
    corpus_gb: float | None = field(default=None, metadata={"help": "Gigabytes of cleaned text of the corpus."})

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device is {self.device!r}; use one of {', '.join(DEVICES)}")
        if self.num_devices < 1 or not 0 < (1 if self.mfu is None else self.mfu) <= 1:
            raise InputError(
                f"num_devices is {self.num_devices} and mfu {self.mfu}; give at least one, and a share such as 0.3"
            )
        for name, size in (("num_tokens", self.num_tokens), ("corpus_gb", self.corpus_gb)):
            if size is not None and not size > 0:
                raise InputError(f"{name} is {size}; give the size of the corpus, such as 1e9 tokens or 45 GB")


@dataclass
class PlannedArguments(PretrainingArguments):
    """Arguments of a run on a device that need not be here."""

    def _choose_precision(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; give --precision and one of {', '.join(PRECISIONS)}")


def main() -> None:
    """Print the plan."""
    classes = (ModelArguments, DataArguments, PlannedArguments, PlanArguments)
    model_args, data_args, training_args, plan_args = parse_args(*classes, default_preset=SMOKE_PRESET)
    device, rows = DEVICES[plan_args.device], open_rows(data_args, plan_args)
    tokenizer, is_real = find_tokenizer(model_args, data_args, rows)
    is_continued = model_args.init_discriminator or model_args.init_generator
    config = build_model(model_args, tokenizer).config if is_continued else build_config(model_args, tokenizer)
    collator = DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=model_args.mask_probability)
    max_length = rows.max_length if rows else data_args.max_length or DEFAULT_MAX_LENGTH
    shape = {"max_length": max_length, "num_masked": collator.num_masked(max_length)}
    num_rows = training_args.per_device_train_batch_size
    rows_at_once = num_rows * (plan_args.num_devices * device.num_units if plan_args.device != "cpu" else 1)
    rows_per_step = training_args.total_train_batch_size or rows_at_once * training_args.gradient_accumulation_steps
    corpus_tokens, basis = count_tokens(plan_args, data_args, tokenizer if is_real else None, rows)
    num_steps = training_args.max_steps
    if num_steps <= 0:
        num_steps = math.ceil(training_args.num_train_epochs * corpus_tokens / (rows_per_step * max_length))
    num_tokens = num_steps * rows_per_step * max_length
    per_row = training_flops_per_row(config, **shape, is_generator_frozen=training_args.frozen_generator)
    precision = device.precision if training_args.precision == "auto" else training_args.precision
    memory = estimate_memory(
        config,
        num_rows=num_rows,
        **shape,
        precision=precision,
        activation_checkpointing=training_args.activation_checkpointing,
        is_accumulated=rows_per_step > rows_at_once,
        fuses_attention=device.fuses_attention,
        is_generator_frozen=training_args.frozen_generator,
    )
    parameters = ", ".join(f"{part} {number:,}" for part, number in count_parameters(config).items())
    print(f"parameters: {parameters}")
    print(f"run: {num_steps:,} steps of {rows_per_step:,} rows of {max_length} tokens, {num_tokens:,} tokens")
    print(f"corpus: {corpus_tokens:,} tokens ({basis}), {num_tokens / corpus_tokens:.2f} passes")
    print(f"operations: {per_row / max_length:.4g} a token, {per_row / max_length * num_tokens:.4g} in the run")
    print(describe_memory(memory, device))
    print(describe_time(per_row / max_length * num_tokens, device, plan_args))
    if precision != device.precision:
        print(f"WARNING: the time is of {device.precision}; give the --mfu of {precision}, as a share of that peak")


def open_rows(data: DataArguments, plan: PlanArguments) -> PackedRows | None:
    """Return the rows that the data set is, if it is; where a size is given, it need not be there."""
    try:
        if data.dataset is not None and is_packed(data.dataset, revision=data.dataset_revision):
            return PackedRows(data.dataset, seed=0, revision=data.dataset_revision)
    except InputError:
        if plan.num_tokens is None and plan.corpus_gb is None:
            raise
        data.dataset = None
    return None


def find_tokenizer(
    model: ModelArguments, data: DataArguments, rows: PackedRows | None
) -> tuple[PreTrainedTokenizerBase, bool]:
    """Return the tokenizer of a run; if it would train one, a stand-in of that size, and false."""
    if data.tokenizer is not None:
        return load_tokenizer(data.tokenizer, revision=data.tokenizer_revision), True
    if rows is not None:
        return rows.load_tokenizer(), True
    for half in ("discriminator", "generator"):
        released = getattr(model, f"init_{half}")
        if released is not None:
            return released_tokenizer(released, half), True
    num_unused = (data.vocab_size or DEFAULT_VOCAB_SIZE) - len(SPECIAL_TOKENS)
    return as_bert_tokenizer(append_unused(SPECIAL_TOKENS, num_unused)), False


def count_tokens(
    plan: PlanArguments, data: DataArguments, tokenizer: PreTrainedTokenizerBase | None, rows: PackedRows | None
) -> tuple[int, str]:
    """Return the tokens of the corpus, and how that is known."""
    if plan.num_tokens is not None:
        return round(plan.num_tokens), "given"
    if rows is not None and plan.corpus_gb is None:
        return rows.manifest["counts"]["tokens"], "counted"
    if tokenizer is None or data.dataset is None or rows is not None:
        if plan.corpus_gb is None:
            raise InputError("how large is the corpus? Give --num_tokens, --corpus_gb, or --dataset and --tokenizer")
        return round(plan.corpus_gb * 1e9 / BYTES_PER_TOKEN), f"assumption: {BYTES_PER_TOKEN} bytes a token"
    reader = CommentReader(data.dataset, data.dataset_split, data.dataset_revision, text_column=data.text_column)
    texts = list(islice(read_texts(reader, **data.cleaning()), NUM_SAMPLED + 1))
    if not texts:
        raise InputError(
            f"{data.dataset} has no comment of at least {data.cleaning()['min_chars']} characters; give more"
        )
    num_tokens = sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))
    if plan.corpus_gb is not None:
        bytes_per_token = sum(len(text.encode()) for text in texts) / num_tokens
        return (
            round(plan.corpus_gb * 1e9 / bytes_per_token),
            f"measured: {bytes_per_token:.2f} bytes a token in {len(texts):,} comments",
        )
    if len(texts) <= NUM_SAMPLED:
        return num_tokens, "counted"
    manifest = read_manifest(data.dataset) if Path(data.dataset).is_dir() else None
    if manifest is None or "num_by_length" not in manifest:
        raise InputError(f"{data.dataset} has more than {NUM_SAMPLED:,} comments; say how large it is: --corpus_gb")
    num_chars = sum(length * count for length, count in enumerate(manifest["num_by_length"]))
    tokens_per_char = num_tokens / sum(map(len, texts))
    return (
        round(num_chars * tokens_per_char),
        f"estimated: {tokens_per_char:.3f} a character in {len(texts):,} comments",
    )


def describe_memory(memory: dict[str, int], device: Device) -> str:
    """Return the memory of a device by parts, and what to type where it does not fit."""
    total = sum(memory.values()) / 2**30
    parts = ", ".join(f"{part} {num_bytes / 2**30:.2f}" for part, num_bytes in memory.items())
    if device.gibibytes is None:
        return f"memory: {total:.1f} GiB ({parts})"
    line = f"memory of each device: {total:.1f} of {device.gibibytes:g} GiB, less where layers are compiled ({parts})"
    if total > SHARE_OF_MEMORY * device.gibibytes:
        line += (
            "\nWARNING: it does not fit; give a lower --per_device_train_batch_size with more "
            "--gradient_accumulation_steps, or --activation_checkpointing true"
        )
    return line


def describe_time(num_operations: float, device: Device, plan: PlanArguments) -> str:
    """Return days and price, and what they rest on."""
    mfu, basis = (device.utilisation, device.basis) if plan.mfu is None else (plan.mfu, "given")
    price, source = device.dollars_per_hour, "assumption"
    if plan.dollars_per_hour is not None:
        price, source = plan.dollars_per_hour, "given"
    peak = device.teraflops * device.num_units
    hours = num_operations / (plan.num_devices * peak * 1e12 * mfu) / 3600
    return (
        f"time: {hours / 24:.2f} days on {plan.num_devices} x {device.name} at {mfu:.0%} of {peak:g} TFLOP/s in "
        f"{device.precision} ({basis})\n"
        f"price: ${hours * price * plan.num_devices:,.0f} at ${price:g} an hour each ({source})"
    )


if __name__ == "__main__":
    run_recipe(main)
