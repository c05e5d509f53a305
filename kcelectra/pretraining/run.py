"""A pretraining run: its directory, and the objects it is made of."""

import ctypes
import fcntl
import logging
import math
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy

from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.workers import num_cores
from kcelectra.errors import InputError
from kcelectra.manifest import RECORDED_PACKAGES, write_atomically
from kcelectra.pretraining import xla
from kcelectra.pretraining.attention import choose_attention
from kcelectra.pretraining.checkpoints import (
    BYTES_PER_PARAMETER,
    BYTES_PER_WEIGHT,
    find_checkpoints,
    require_disk_space,
)
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.configuration import KcElectraConfig
from kcelectra.pretraining.continuing import load_released
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.run_data import TOKENIZER_DIR, build_dataset, read_eval_rows
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.pretraining.trainer import KcElectraTrainer
from kcelectra.pretraining.training_arguments import PretrainingArguments

logger = logging.getLogger(__name__)

SETTINGS_FILE = "run.yaml"
LOCK_FILE = ".lock"
RESULTS_DIRS = ("export", "exports", "report", "probe")  # of a run that has saved a checkpoint
LOCK_SECONDS = 120  # that Slurm and clouds give a process to end, about
#: Settings that do not change what is computed: a run may go on with others.
FREE_SETTINGS = {
    "output_dir",
    "allow_changed",
    "dataloader_num_workers",
    "disable_tqdm",
    "eval_dataset",
    "eval_rows",
    "eval_steps",
    "eval_strategy",
    "input_timeout",
    "logging_steps",
    "per_device_eval_batch_size",
    "report_to",
    "save_steps",
    "save_total_limit",
}
#: Nor do these where `total_train_batch_size` says how many rows a step has.
FREE_SPLIT = {"per_device_train_batch_size", "gradient_accumulation_steps"}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, glibc malloc.h


def prepare_cpu() -> None:
    """Give PyTorch every core of a machine that has no accelerator, and let it keep the memory it frees.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nothing says otherwise, which halves the speed of two cores.
    Another number is kept, and 1 where there is no launcher. And glibc gives the memory of each large tensor back to
    the system and asks for zeroed pages a moment later (measured: a sixth of a step of the small size, two fifths of
    one of the base size with rows of 512).
    """
    if torch.accelerator.is_available():
        return
    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
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
        InputError: the directory holds another run that has trained, what is left of one, or files that are no run.
    """
    output_dir = Path(output_dir)
    path = output_dir / SETTINGS_FILE
    settings = {key: value for key, value in settings.items() if key != "output_dir"}
    if path.exists():
        earlier = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        changed = {key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key)}
        changed -= FREE_SETTINGS if "total_train_batch_size" not in settings else FREE_SETTINGS | FREE_SPLIT
        checkpoints = find_checkpoints(output_dir)
        if changed and checkpoints:
            raise InputError(_different_run(checkpoints[-1], earlier, settings, sorted(changed)))
        if left := [name for name in RESULTS_DIRS if not checkpoints and Path(output_dir, name).exists()]:
            raise InputError(
                f"{output_dir} has {', '.join(left)} of a run whose checkpoints are gone; give another --output_dir, "
                "or delete it to train anew"
            )
        if not changed:
            return
        shutil.rmtree(output_dir / TOKENIZER_DIR, ignore_errors=True)  # of a run that never trained
    _make_run_dir(output_dir)
    write_atomically(path, yaml.safe_dump(settings, allow_unicode=True))


def _make_run_dir(output_dir: Path) -> None:
    if output_dir.is_symlink() and not output_dir.exists():
        raise InputError(f"{output_dir} links to nothing; make {output_dir.readlink()}, or give another --output_dir")
    others = {path.name for path in output_dir.iterdir()} - {LOCK_FILE} if output_dir.is_dir() else set()
    if output_dir.is_file() or (others and SETTINGS_FILE not in others):
        raise InputError(f"{output_dir} is there and holds no {SETTINGS_FILE}; give another --output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)


@contextmanager
def lock_run_dir(output_dir: str | Path) -> Iterator[None]:
    """Let no other process train in a directory; one that was told to stop, or whose workers still end, is waited for.

    Taken before `claim_run_dir`, which would write over what a run has whose first checkpoint is still to come.

    Raises:
        InputError: another process trains there, or the directory holds files that are no run.
    """
    _make_run_dir(Path(output_dir))
    with open(Path(output_dir, LOCK_FILE), "w") as file:
        for second in range(LOCK_SECONDS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if second == 0:
                    logger.warning("another process has %s; waiting up to %d seconds", output_dir, LOCK_SECONDS)
                time.sleep(1)
            except OSError:  # a file system without locks
                break
        else:
            raise InputError(f"another process trains {output_dir}; end that one, or give another --output_dir")
        yield


def _different_run(checkpoint: Path, earlier: dict[str, Any], settings: dict[str, Any], changed: list[str]) -> str:
    output_dir = checkpoint.parent
    listed = "; ".join(f"{key}: {earlier.get(key)} there, {settings.get(key)} now" for key in changed)
    command = ["accelerate", "launch", "recipes/pretrain.py", str(output_dir / SETTINGS_FILE)]
    command += ["--output_dir", str(output_dir)]
    return (
        f"{output_dir} holds a different run ({listed}); give another --output_dir (and, to train on from here, "
        f"--resume_from_checkpoint {checkpoint}), or continue that run with `{shlex.join(command)}`"
    )


def build_trainer(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: PretrainingArguments,
    *,
    source: CommentReader | PackedRows,
    tokenizer: PreTrainedTokenizerBase,
) -> KcElectraTrainer:
    """Put model, collator and rows together.

    Raises:
        InputError: rows are longer than the position table, no position would be masked, the run counts no steps, or
            the disk has no room for its checkpoints.
    """
    dataset = build_dataset(data_arguments, training_arguments, source, tokenizer)
    if training_arguments.generator_warmup_steps is None:
        is_new_beside_old = model_arguments.init_discriminator and not model_arguments.init_generator
        if is_new_beside_old and training_arguments.resume_from_checkpoint:  # a tenth of other steps would be another
            raise InputError("give --generator_warmup_steps, as the run had that the checkpoint is of")
        training_arguments.generator_warmup_steps = training_arguments.max_steps // 10 if is_new_beside_old else 0
    collator = DataCollatorForReplacedTokenDetection(
        tokenizer, mask_probability=model_arguments.mask_probability, seed=training_arguments.seed
    )
    collator.num_masked(dataset.max_length)
    eval_rows = read_eval_rows(
        data_arguments, training_arguments, tokenizer, source=source, max_length=dataset.max_length
    )
    _check_options(model_arguments, training_arguments, max_length=dataset.max_length)
    model = build_model(model_arguments, tokenizer)
    _choose_back_end(model, training_arguments)
    num_positions = model.config.discriminator_config.max_position_embeddings
    if dataset.max_length > num_positions:
        is_new = not (model_arguments.init_discriminator or model_arguments.init_generator)
        raise InputError(
            f"max_length {dataset.max_length} is above the position table, {num_positions}; give a --max_length of at "
            f"most {num_positions}" + (f", or --max_position_embeddings {dataset.max_length}" if is_new else "")
        )
    _require_room(model.num_parameters(), training_arguments)
    return KcElectraTrainer(
        model=model,
        args=training_arguments,
        train_dataset=dataset,
        eval_dataset=eval_rows,
        data_collator=collator,
        processing_class=tokenizer,
    )


def _check_options(model: ModelArguments, training: PretrainingArguments, *, max_length: int) -> None:
    if training.short_length is not None and (training.short_length < 1 or max_length % training.short_length):
        raise InputError(
            f"short_length {training.short_length} does not divide rows of {max_length} tokens; give one that does"
        )
    if training.short_length_steps <= 0:
        raise InputError(f"short_length_steps is {training.short_length_steps}; give steps, or a share of them as 0.9")
    if training.frozen_generator and (model.init_generator is None or training.initial_temperature < 1):
        raise InputError(
            f"frozen_generator with --init_generator {model.init_generator} and --initial_temperature "
            f"{training.initial_temperature}; give a generator that is trained, and a temperature of at least 1"
        )
    if training.frozen_generator and (training.generator_warmup_steps or model.discriminator_weight == 0):
        raise InputError(
            "frozen_generator with --generator_warmup_steps or --discriminator_weight 0 leaves nothing to train; "
            "leave one out"
        )


def _choose_back_end(model: KcElectraForPreTraining, arguments: PretrainingArguments) -> None:
    device_type, config = arguments.device.type, model.config.discriminator_config
    attention = choose_attention(
        arguments.attention, device_type=device_type, dropout=config.attention_probs_dropout_prob
    )
    is_compiled = device_type == "cuda" if arguments.compile is None else arguments.compile
    model.use_attention(attention)
    if is_compiled:
        model.compile_parts()
    if arguments.process_index == 0:
        num_rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        where = f"{num_rows} rows a step on {arguments.world_size * xla.num_devices()} x {device_type}"
        print(f"{where}; attention: {attention}; compiled: {'yes' if is_compiled else 'no'}")  # noqa: T201


def build_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> KcElectraForPreTraining:
    """Return a new model of a published size, or one that goes on from released weights."""
    if arguments.init_discriminator is None and arguments.init_embeddings:
        raise InputError("init_embeddings chooses between those of a released pair; give its --init_discriminator")
    if arguments.init_discriminator is None and arguments.init_generator is None:
        return KcElectraForPreTraining(build_config(arguments, tokenizer))
    return load_released(
        arguments.init_discriminator or build_config(arguments, tokenizer).discriminator_config,
        tokenizer,
        generator=arguments.init_generator,
        embeddings=arguments.init_embeddings,
        generator_fraction=arguments.generator_fraction,
        generator_layers=arguments.generator_layers,
        hidden_dropout=arguments.hidden_dropout,
        attention_dropout=arguments.attention_dropout,
        embedding_sharing=arguments.embedding_sharing,
        generator_weight=arguments.generator_weight,
        discriminator_weight=arguments.discriminator_weight,
        unsampled_token_ids=_unsampled(arguments, tokenizer),
    )


def build_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> KcElectraConfig:
    """Return the configuration of a model for a tokenizer."""
    fraction = arguments.generator_fraction
    return KcElectraConfig.from_size(
        arguments.size,
        vocab_size=len(tokenizer),
        max_position_embeddings=arguments.max_position_embeddings,
        attention_probs_dropout_prob=arguments.attention_dropout,
        hidden_dropout_prob=arguments.hidden_dropout,
        generator_weight=arguments.generator_weight,
        discriminator_weight=arguments.discriminator_weight,
        unsampled_token_ids=_unsampled(arguments, tokenizer),
        generator_layers=arguments.generator_layers,
        embedding_sharing=arguments.embedding_sharing,
        **({} if fraction is None else {"generator_fraction": fraction}),
    )


def _unsampled(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    special = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    return special if arguments.exclude_special_tokens else ()


def describe_run(trainer: KcElectraTrainer) -> dict[str, dict[str, Any]]:
    """Return what a report says about a run: its model, its data, its training."""
    args, config, max_length = trainer.args, trainer.model.config, trainer.train_dataset.max_length
    generator, discriminator = config.generator_config, config.discriminator_config
    return {
        "Model": {
            "parameters": trainer.model.num_parameters(),
            "vocabulary": discriminator.vocab_size,
            "discriminator": f"{discriminator.num_hidden_layers} layers of {discriminator.hidden_size}",
            "generator": f"{generator.num_hidden_layers} layers of {generator.hidden_size}",
            "masked positions per row": trainer.data_collator.num_masked(max_length),
        },
        **_describe_data(trainer.train_dataset, trainer.state.epoch),
        "Training": {
            "steps": args.max_steps,
            "rows per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "tokens of a row": max_length,
            "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
            "device": str(args.device),
            "seed": args.seed,
            "model FLOPs (3 x forward, look-ups free)": float(trainer.state.total_flos),
        },
        "Versions": {package: version(package) for package in RECORDED_PACKAGES},
    }


def _describe_data(dataset: PackedRows | PackedStream, epoch: float | None) -> dict[str, dict[str, Any]]:
    if isinstance(dataset, PackedRows):
        return {"Data": {"source": dataset.dataset, **dataset.manifest["counts"], "passes": epoch}}
    slots = dataset.max_length * max(1, dataset.counts["rows"])
    left_out = {reason: count for reason, count in dataset.reader.counts.items() if reason != "comments"}
    return {
        "Data since the last start": {
            "source": dataset.reader.dataset,
            **dataset.counts,
            "share of slots that hold a token": dataset.counts["tokens"] / slots,
            **{f"rows left out, {reason}": count for reason, count in left_out.items()},
        }
    }


def _require_room(num_parameters: int, arguments: PretrainingArguments) -> None:
    """Count the checkpoints that will be kept, the one being written, and the export, less what is there already."""
    num_saves = math.ceil(1 / arguments.save_steps)  # a share of all steps if below 1
    if arguments.save_steps >= 1:
        num_saves = math.ceil(arguments.max_steps / arguments.save_steps)
    limit = arguments.save_total_limit or 0
    num_kept = (min(num_saves, limit) if limit > 0 else num_saves) + 1
    num_exports = 1
    if arguments.push_to_hub:  # a copy of what is being pushed
        num_exports += 1
        num_kept += arguments.hub_strategy == HubStrategy.CHECKPOINT
    num_bytes = num_parameters * (BYTES_PER_PARAMETER * num_kept + BYTES_PER_WEIGHT * num_exports)
    run_dir = Path(str(arguments.output_dir))
    present = sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file())
    require_disk_space(run_dir, num_bytes=num_bytes - present, purpose="the run")
