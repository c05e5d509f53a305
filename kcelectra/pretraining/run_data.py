"""What a run reads: comments or packed rows, their tokenizer, and rows that are not trained on."""

import logging
import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from kcelectra.corpus.comments import CommentReader, choose_cleaning, find_corpus_cleaning
from kcelectra.corpus.sample import write_sample
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, verify_manifest
from kcelectra.pretraining import xla
from kcelectra.pretraining.continuing import released_tokenizer
from kcelectra.pretraining.packed import PackedRows, is_packed
from kcelectra.pretraining.run_arguments import DEFAULT_MAX_LENGTH, DEFAULT_VOCAB_SIZE, DataArguments
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.tokenization import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_DIR = "tokenizer"


def open_source(arguments: DataArguments, run_dir: str | Path, *, seed: int = 0) -> CommentReader | PackedRows:
    """Open packed rows, or comments; the embedded sample is written into the run's directory first."""
    revision = arguments.dataset_revision
    if arguments.dataset is not None and is_packed(arguments.dataset, revision=revision):
        return PackedRows(arguments.dataset, seed=seed, revision=revision)
    dataset = arguments.dataset or str(write_sample(Path(run_dir, "sample")))
    return CommentReader(dataset, arguments.dataset_split, revision, text_column=arguments.text_column)


def prepare_tokenizer(
    arguments: DataArguments,
    source: CommentReader | PackedRows,
    run_dir: str | Path,
    *,
    init_discriminator: str | None = None,
    init_generator: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer, or train one on the comments into `tokenizer/` of the run, once.

    Args:
        arguments: name it; else it is that of the packed rows or of the released model, if there are any.
        source: of the run.
        run_dir: of the run.
        init_discriminator: the released model.
        init_generator: the same, where that is not given.

    Raises:
        InputError: `vocab_size` is given and is not that of the loaded tokenizer, or rows were packed with another.
    """
    trained_dir = Path(run_dir, TOKENIZER_DIR)
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer, revision=arguments.tokenizer_revision)
    elif isinstance(source, PackedRows):
        tokenizer = source.load_tokenizer()
    elif init_discriminator is not None:
        tokenizer = released_tokenizer(init_discriminator)
    elif init_generator is not None:
        tokenizer = released_tokenizer(init_generator, "generator")
    else:
        if not (trained_dir / MANIFEST).exists():
            shutil.rmtree(trained_dir, ignore_errors=True)
            vocab_size = arguments.vocab_size or DEFAULT_VOCAB_SIZE
            train_tokenizer(source, trained_dir, vocab_size=vocab_size, **arguments.cleaning())
        verify_manifest(trained_dir)
        return load_tokenizer(trained_dir)
    if isinstance(source, PackedRows):
        source.check_tokenizer(tokenizer)
    if arguments.vocab_size not in (None, len(tokenizer)):
        raise InputError(
            f"{arguments.tokenizer or 'the tokenizer'} has {len(tokenizer)} tokens, vocab_size is "
            f"{arguments.vocab_size}; leave out --vocab_size, which is for a tokenizer that is trained here, or leave "
            "out --tokenizer"
        )
    return tokenizer


def build_dataset(
    arguments: DataArguments,
    training_arguments: PretrainingArguments,
    source: CommentReader | PackedRows,
    tokenizer: PreTrainedTokenizerBase,
) -> PackedRows | PackedStream:
    """Return what is trained on, and set the steps of a number of epochs.

    Raises:
        InputError: packed rows have another length, or were to be packed anew; or nothing says how long to train.
    """
    if isinstance(source, PackedRows):
        if arguments.max_length not in (None, source.max_length):
            raise InputError(
                f"max_length is {arguments.max_length}, the rows of {source.dataset} have {source.max_length} tokens; "
                f"give --max_length {source.max_length}, or pack rows of another length with recipes/pack.py"
            )
        cleaned = find_cleaning(arguments, source)
        for name, value in cleaned.items():
            if getattr(arguments, name) not in (None, value, source.manifest["settings"][name]):
                raise InputError(
                    f"{name} is {getattr(arguments, name)}, and the rows of {source.dataset} hold what {value} has "
                    f"left; give --{name} {value}, or pack others with recipes/pack.py"
                )
        for name in ("fill_documents", "repeat_probability"):
            if getattr(arguments, name):
                raise InputError(
                    f"{source.dataset} holds packed rows; leave out --{name}, or give it to recipes/pack.py"
                )
        if training_arguments.max_steps <= 0:
            rows = training_arguments.train_batch_size * training_arguments.gradient_accumulation_steps
            num_rows = training_arguments.num_train_epochs * source.num_rows
            training_arguments.max_steps = math.ceil(num_rows / (rows * training_arguments.world_size))
        return source
    if training_arguments.max_steps <= 0:
        raise InputError("a stream has no length; say how long to train with --max_steps")
    corpus = find_corpus_cleaning(source.dataset)
    if corpus is not None and arguments.rules not in (None, "none", corpus["rules"]):
        logger.warning(
            "%s was cleaned by %s, and is cleaned by %s on top of it; leave out --rules, or give --rules none",
            source.dataset,
            corpus["rules"],
            arguments.rules,
        )
    return PackedStream(
        source,
        tokenizer,
        max_length=arguments.max_length or DEFAULT_MAX_LENGTH,
        **arguments.cleaning(),
        fill_documents=arguments.fill_documents,
        repeat_probability=arguments.repeat_probability,
        seed=training_arguments.seed,
        shuffle_window=arguments.shuffle_window,
    )


def find_cleaning(arguments: DataArguments, source: CommentReader | PackedRows) -> dict[str, Any]:
    """Return `rules` and `min_chars` of what is trained on, by whichever stage it was cleaned."""
    if isinstance(source, PackedRows):
        settings = {name: source.manifest["settings"][name] for name in ("rules", "min_chars")}
        return source.manifest.get("cleaning") or settings  # earlier rows do not say what their corpus was cleaned by
    return find_corpus_cleaning(source.dataset) or arguments.cleaning()


def read_eval_rows(
    arguments: DataArguments,
    training_arguments: PretrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: CommentReader | PackedRows,
    max_length: int,
) -> list[dict[str, Any]] | None:
    """Return rows that are not trained on, made as those that are, and have them evaluated as a checkpoint is saved.

    Text that is no corpus is cleaned as what is trained on was: else two kinds of text would be compared.
    """
    dataset, num_rows = arguments.eval_dataset, arguments.eval_rows
    if dataset is None:
        if training_arguments.eval_strategy != IntervalStrategy.NO:
            raise InputError("there is nothing to evaluate on; give --eval_dataset, or leave out --eval_strategy")
        return None
    if dataset == arguments.dataset or num_rows < 1:
        raise InputError(
            f"eval_dataset is {dataset}, eval_rows {num_rows}; give other comments than the --dataset, and 1 or more"
        )
    if training_arguments.load_best_model_at_end:
        raise InputError("load_best_model_at_end is given, and a run ends with its last step; leave it out")
    if xla.IS_THERE:
        raise InputError("eval_dataset is for CPUs and GPUs, not for XLA; leave it out")
    if training_arguments.eval_strategy == IntervalStrategy.NO:
        training_arguments.eval_strategy = IntervalStrategy.STEPS
        training_arguments.eval_steps = training_arguments.save_steps
    if is_packed(dataset):
        rows = PackedRows(dataset, seed=training_arguments.seed)
        rows.check_tokenizer(tokenizer)
        if rows.max_length != max_length:
            raise InputError(f"the rows of {dataset} have {rows.max_length} tokens, not {max_length}; pack others")
        return rows.__getitems__(range(min(num_rows, len(rows))))
    cleaning: dict[str, Any] = {"rules": arguments.rules, "min_chars": arguments.min_chars}
    if find_corpus_cleaning(dataset) is None:
        trained = find_cleaning(arguments, source)
        cleaning = {name: trained[name] if value is None else value for name, value in cleaning.items()}
    settings = source.manifest["settings"] if isinstance(source, PackedRows) else {}
    stream = PackedStream(
        CommentReader(dataset, text_column=arguments.text_column),
        tokenizer,
        max_length=max_length,
        **choose_cleaning(dataset, **cleaning),
        fill_documents=settings.get("fill_documents", arguments.fill_documents),
        seed=training_arguments.seed,
        num_passes=1,
    )
    return list(islice(stream, num_rows))
