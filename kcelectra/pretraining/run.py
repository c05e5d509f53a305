"""A pretraining run: what it was asked for, and the objects it is made of."""

import ctypes
import math
import os
import platform
import shlex
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy

from kcelectra.corpus.cleaning import RULE_SETS
from kcelectra.corpus.comments import CommentReader, choose_cleaning
from kcelectra.corpus.sample import write_sample
from kcelectra.corpus.workers import num_cores
from kcelectra.errors import InputError
from kcelectra.manifest import (
    MANIFEST,
    RECORDED_PACKAGES,
    verify_manifest,
    write_atomically,
)
from kcelectra.pretraining.checkpoints import (
    BYTES_PER_PARAMETER,
    BYTES_PER_WEIGHT,
    find_last_checkpoint,
    require_disk_space,
)
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.configuration import SIZES, KcElectraConfig
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.pretraining.streaming import SHUFFLE_WINDOW, PackedStream
from kcelectra.pretraining.trainer import KcElectraTrainer, PretrainingArguments
from kcelectra.tokenization import load_tokenizer, train_tokenizer

SETTINGS_FILE = "run.yaml"
TOKENIZER_DIR = "tokenizer"
DEFAULT_VOCAB_SIZE = 30000
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, glibc malloc.h


@dataclass
class ModelArguments:
    """What is trained."""

    size: str = field(default="tiny", metadata={"help": f"Architecture: {', '.join(SIZES)}."})
    generator_fraction: float | None = field(
        default=None,
        metadata={"help": "Width of the generator as a share of the discriminator's; by size if not given."},
    )
    mask_probability: float = field(default=0.15, metadata={"help": "Share of tokens that is masked."})
    max_position_embeddings: int = field(default=512, metadata={"help": "Rows of the position table."})
    generator_weight: float = field(default=1.0, metadata={"help": "Weight of the generator's loss."})
    discriminator_weight: float = field(default=50.0, metadata={"help": "Weight of the discriminator's loss."})
    exclude_special_tokens: bool = field(
        default=True, metadata={"help": "Never draw [PAD], [CLS], [SEP] or [MASK] as a replacement."}
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str | None = field(
        default=None, metadata={"help": "File, quoted glob, directory or Hub id; the embedded sample if not given."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    rules: str | None = field(
        default=None,
        metadata={
            "help": f"Rule set that cleans: {', '.join(RULE_SETS)}; v2022 if not given, none for a built corpus."
        },
    )
    min_chars: int | None = field(
        default=None,
        metadata={"help": "Leave out comments with fewer characters; 10 if not given, 0 for a built corpus."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "vocab.txt, directory or Hub id; trained on the comments if not given."}
    )
    tokenizer_revision: str | None = field(default=None, metadata={"help": "Revision of a tokenizer of the Hub."})
    vocab_size: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a tokenizer that is trained here; {DEFAULT_VOCAB_SIZE} if not given."},
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    shuffle_window: int = field(default=SHUFFLE_WINDOW, metadata={"help": "Rows that are shuffled together."})

    def cleaning(self) -> dict[str, Any]:
        """Return `rules` and `min_chars`, those not given by what the dataset is."""
        return choose_cleaning(self.dataset or "", self.rules, self.min_chars)


def prepare_cpu() -> None:
    """Give PyTorch every core of a machine that has no accelerator, and let it keep the memory it frees.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nothing says otherwise, which halves the speed of two cores. A
    number that `--num_cpu_threads_per_process` or the environment gives is kept, unless it is 1. And glibc gives the
    memory of each large tensor back to the system and asks for zeroed pages a moment later (measured: a sixth of a
    step of the small size, two fifths of one of the base size with rows of 512).
    """
    if torch.accelerator.is_available():
        return
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def claim_run_dir(output_dir: str | Path, settings: dict[str, Any]) -> None:
    """Make a directory this run's, or see that it is already.

    Args:
        output_dir: of the run; made if it does not exist.
        settings: every key that the preset and the command line gave.

    Raises:
        InputError: the directory holds another run that has trained, or files that are no run.
    """
    output_dir = Path(output_dir)
    path = output_dir / SETTINGS_FILE
    settings = {key: value for key, value in settings.items() if key != "output_dir"}
    if path.exists():
        earlier = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if earlier == settings:
            return
        if find_last_checkpoint(output_dir) is not None:
            raise InputError(_different_run(output_dir, earlier, settings))
        shutil.rmtree(output_dir / TOKENIZER_DIR, ignore_errors=True)  # of a run that never trained
    elif output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise InputError(f"{output_dir} is there and holds no {SETTINGS_FILE}; give another --output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(settings, allow_unicode=True))


def _different_run(output_dir: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    changed = sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key))
    listed = "; ".join(f"{key}: {earlier.get(key)} there, {settings.get(key)} now" for key in changed)
    command = ["accelerate", "launch", "recipes/pretrain.py", str(output_dir / SETTINGS_FILE)]
    command += ["--output_dir", str(output_dir)]
    return (
        f"{output_dir} holds a different run ({listed}); give another --output_dir, or continue that run with "
        f"`{shlex.join(command)}`"
    )


def open_comments(arguments: DataArguments, run_dir: str | Path) -> CommentReader:
    """Open the source; the embedded sample is written into the run's directory first."""
    dataset = arguments.dataset or str(write_sample(Path(run_dir, "sample")))
    return CommentReader(
        dataset, arguments.dataset_split, arguments.dataset_revision, text_column=arguments.text_column
    )


def prepare_tokenizer(arguments: DataArguments, reader: CommentReader, run_dir: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer, or train one on the comments into `tokenizer/` of the run, once.

    Raises:
        InputError: `vocab_size` is given and is not that of the loaded tokenizer.
    """
    trained_dir = Path(run_dir, TOKENIZER_DIR)
    if arguments.tokenizer is None and not (trained_dir / MANIFEST).exists():
        shutil.rmtree(trained_dir, ignore_errors=True)
        vocab_size = arguments.vocab_size or DEFAULT_VOCAB_SIZE
        train_tokenizer(reader, trained_dir, vocab_size=vocab_size, **arguments.cleaning())
    if arguments.tokenizer is None:
        verify_manifest(trained_dir)
        return load_tokenizer(trained_dir)
    tokenizer = load_tokenizer(arguments.tokenizer, revision=arguments.tokenizer_revision)
    if arguments.vocab_size not in (None, len(tokenizer)):
        raise InputError(
            f"{arguments.tokenizer} has {len(tokenizer)} tokens, vocab_size is {arguments.vocab_size}; leave out "
            "--vocab_size, which is for a tokenizer that is trained here, or leave out --tokenizer"
        )
    return tokenizer


def build_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: PretrainingArguments,
    *,
    reader: CommentReader,
    tokenizer: PreTrainedTokenizerBase,
) -> KcElectraTrainer:
    """Put model, collator and stream together.

    Raises:
        InputError: rows are longer than the position table, no position would be masked, the run counts no steps, or
            the disk has no room for its checkpoints.
    """
    max_length = data_arguments.max_length
    if max_length > model_arguments.max_position_embeddings:
        raise InputError(
            f"max_length {max_length} is above the position table, {model_arguments.max_position_embeddings}; give a "
            f"lower --max_length or --max_position_embeddings {max_length}"
        )
    if training_arguments.max_steps <= 0:
        raise InputError("a stream has no length; say how long to train with --max_steps")
    collator = DataCollatorForReplacedTokenDetection(
        tokenizer, mask_probability=model_arguments.mask_probability, seed=training_arguments.seed
    )
    collator.num_masked(max_length)
    stream = PackedStream(
        reader,
        tokenizer,
        max_length=max_length,
        **data_arguments.cleaning(),
        seed=training_arguments.seed,
        shuffle_window=data_arguments.shuffle_window,
    )
    model = KcElectraForPreTraining(build_config(model_arguments, tokenizer))
    _require_room(model.num_parameters(), training_arguments)
    return KcElectraTrainer(
        model=model,
        args=training_arguments,
        train_dataset=stream,
        data_collator=collator,
        processing_class=tokenizer,
    )


def build_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> KcElectraConfig:
    """Return the configuration of a model for a tokenizer."""
    special = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    fraction = arguments.generator_fraction
    return KcElectraConfig.from_size(
        arguments.size,
        vocab_size=len(tokenizer),
        max_position_embeddings=arguments.max_position_embeddings,
        generator_weight=arguments.generator_weight,
        discriminator_weight=arguments.discriminator_weight,
        unsampled_token_ids=special if arguments.exclude_special_tokens else (),
        **({} if fraction is None else {"generator_fraction": fraction}),
    )


def describe_run(trainer: KcElectraTrainer) -> dict[str, dict[str, Any]]:
    """Return what a report says about a run: its model, its data since the last start, its training."""
    stream, args, config = trainer.train_dataset, trainer.args, trainer.model.config
    generator, discriminator = config.generator_config, config.discriminator_config
    slots = stream.max_length * max(1, stream.counts["rows"])
    return {
        "Model": {
            "parameters": trainer.model.num_parameters(),
            "vocabulary": discriminator.vocab_size,
            "discriminator": f"{discriminator.num_hidden_layers} layers of {discriminator.hidden_size}",
            "generator": f"{generator.num_hidden_layers} layers of {generator.hidden_size}",
            "masked positions per row": trainer.data_collator.num_masked(stream.max_length),
        },
        "Data since the last start": {
            "source": stream.reader.dataset,
            **stream.counts,
            "share of slots that hold a token": stream.counts["tokens"] / slots,
            **{
                f"rows left out, {reason}": count
                for reason, count in stream.reader.counts.items()
                if reason != "comments"
            },
        },
        "Training": {
            "steps": args.max_steps,
            "rows per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "tokens of a row": stream.max_length,
            "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            "device": str(args.device),
            "seed": args.seed,
            "model FLOPs (3 x forward, look-ups free)": float(trainer.state.total_flos),
        },
        "Versions": {package: version(package) for package in RECORDED_PACKAGES},
    }


def _require_room(num_parameters: int, arguments: PretrainingArguments) -> None:
    """Count the checkpoints that will be kept, the one being written, and the export, less what is there already."""
    num_saves = math.ceil(1 / arguments.save_steps)  # a share of all steps if below 1
    if arguments.save_steps >= 1:
        num_saves = math.ceil(arguments.max_steps / arguments.save_steps)
    num_kept = min(num_saves, arguments.save_total_limit or num_saves) + 1
    num_exports = 1
    if arguments.push_to_hub:  # a copy of what is being pushed
        num_exports += 1
        num_kept += arguments.hub_strategy == HubStrategy.CHECKPOINT
    num_bytes = num_parameters * (BYTES_PER_PARAMETER * num_kept + BYTES_PER_WEIGHT * num_exports)
    run_dir = Path(str(arguments.output_dir))
    present = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
    require_disk_space(run_dir, num_bytes=num_bytes - present, purpose="the run")
