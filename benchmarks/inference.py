"""Speed of a classifier on a CPU as PyTorch, ONNX and int8, and what int8 costs in accuracy.

    python benchmarks/inference.py
    python benchmarks/inference.py --model out/finetune/mine/nsmc-0 --data_dir data

A size has random weights and tokens, which is all that speed needs; a directory is a model that was fine-tuned on
NSMC. With --data_dir the rows are its test reviews. The forms take turns on the same rows, with one thread each; what
counts is CPU time, which others on the machine change little.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from onnxruntime import InferenceSession, SessionOptions
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from kcelectra import TASKS, KcElectraConfig
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.sources import read_splits
from kcelectra.pretraining.configuration import SIZES
from kcelectra.release.onnx import INT8_MODEL, MODEL, export_onnx
from kcelectra.tokenization import SPECIAL_TOKENS, load_tokenizer, save_tokenizer

NSMC = TASKS["nsmc"]
VOCAB_SIZE = 54_343  # of KcELECTRA v2022
BATCH_SIZES = (1, 8, 32)
EVAL_BATCH_SIZE = 32
RANDOM_LENGTHS = (8, 50)

Batch = dict[str, np.ndarray]
Form = Callable[[Batch], np.ndarray]


def make_model(size: str, vocab_file: str | None, directory: Path) -> Path:
    """Write a classifier with random weights, and return where it is."""
    unused = [f"[unused{number}]" for number in range(VOCAB_SIZE - len(SPECIAL_TOKENS))]
    if vocab_file is None:
        vocab_file = str(directory / "random.txt")
        Path(vocab_file).write_text("".join(f"{token}\n" for token in [*SPECIAL_TOKENS, *unused]))
    tokenizer = load_tokenizer(vocab_file)
    torch.manual_seed(0)
    config = KcElectraConfig.from_size(size, vocab_size=len(tokenizer)).discriminator_config
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory / size)
    save_tokenizer(tokenizer, directory / size)
    return directory / size


def load_forms(model_dir: Path, onnx_dir: Path) -> dict[str, Form]:
    """Return what gives the logits of a batch, by name."""
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    options = SessionOptions()
    options.intra_op_num_threads = 1

    @torch.inference_mode()
    def eager(batch: Batch) -> np.ndarray:
        return model(**{name: torch.from_numpy(values) for name, values in batch.items()}).logits.numpy()

    def open_onnx(name: str) -> Form:
        session = InferenceSession(onnx_dir / name, options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, batch)[0]

    return {"PyTorch": eager, "ONNX": open_onnx(MODEL), "int8": open_onnx(INT8_MODEL)}


def draw_rows(num_rows: int, vocab_size: int) -> list[list[int]]:
    """Return rows of random tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(*RANDOM_LENGTHS, num_rows, endpoint=True)
    return [generator.integers(len(SPECIAL_TOKENS), vocab_size, length).tolist() for length in lengths]


def pad(rows: list[list[int]], batch_size: int, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """Return batches, padded to their longest row."""
    batches = []
    for start in range(0, len(rows), batch_size):
        padded = tokenizer.pad({"input_ids": rows[start : start + batch_size]}, return_tensors="np")
        batches.append({**padded, "token_type_ids": np.zeros_like(padded["input_ids"])})
    return batches


def compare_speed(forms: dict[str, Form], batches: list[Batch], num_rounds: int) -> None:
    """Print tokens per second of CPU of each form, padding left out, and its ratio to PyTorch, round by round."""
    num_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form(batches[0])  # allocates
    for _ in range(num_rounds):
        for name, form in forms.items():
            start = time.process_time()
            for batch in batches:
                form(batch)
            seconds[name].append(time.process_time() - start)
    for name, rounds in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds["PyTorch"], rounds, strict=True)]
        print(
            f"  {name:<8}{num_tokens / median(rounds):>9,.0f} tokens/s of CPU, {median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def compare_logits(forms: dict[str, Form], batches: list[Batch], labels: list[int] | None) -> None:
    """Print how far the logits of each form are from PyTorch's, and the accuracy where there are labels."""
    logits = {name: np.concatenate([form(batch) for batch in batches]) for name, form in forms.items()}
    expected = logits["PyTorch"]
    print(f"{len(expected):,} rows, logits up to {np.abs(expected).max():.2f}")
    for name, values in logits.items():
        is_same = values.argmax(axis=1) == expected.argmax(axis=1)
        score = f"accuracy {np.mean(values.argmax(axis=1) == labels):.4f}, " if labels is not None else ""
        print(f"  {name:<8}{score}{is_same.mean():.2%} as PyTorch, at most {np.abs(values - expected).max():.1e} off")


def main() -> None:
    """Compare the forms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help=f"directory, or a size: {', '.join(SIZES)}")
    parser.add_argument("--tokenizer", help="of a size with --data_dir: vocab.txt, directory or Hub id")
    parser.add_argument("--data_dir", help="directory of all tasks, or of NSMC")
    parser.add_argument("--num_rows", type=int, default=64, help="that speed is measured on")
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--max_eval", type=int, default=10_000, help="rows that logits are compared on")
    arguments = parser.parse_args()
    is_size = arguments.model in SIZES
    if is_size and arguments.data_dir and not arguments.tokenizer:
        parser.error("a size has no tokenizer for the reviews of --data_dir: give --tokenizer, such as vocab.txt")
    with tempfile.TemporaryDirectory() as directory:
        work_dir = Path(directory)
        model_dir = make_model(arguments.model, arguments.tokenizer, work_dir) if is_size else Path(arguments.model)
        export_onnx(model_dir, work_dir / "onnx", quantize=True)
        files = {"safetensors": model_dir / "model.safetensors"}
        files |= {name: work_dir / "onnx" / name for name in (MODEL, INT8_MODEL)}
        print(", ".join(f"{name} {path.stat().st_size / 1e6:,.1f} MB" for name, path in files.items()))
        tokenizer = load_tokenizer(model_dir, for_pretraining=False)
        rows, labels = draw_rows(max(arguments.num_rows, 256), len(tokenizer)), None
        if arguments.data_dir:
            examples = read_splits(NSMC, arguments.data_dir).test[: max(arguments.num_rows, arguments.max_eval)]
            head = SequenceHead(tokenizer, NSMC.labels, NSMC.max_length)
            rows = [feature["input_ids"] for feature in head.encode(examples)]
            labels = None if is_size else head.references(examples)[: arguments.max_eval]
        forms = load_forms(model_dir, work_dir / "onnx")
        compare_logits(forms, pad(rows[: arguments.max_eval], EVAL_BATCH_SIZE, tokenizer), labels)
        for batch_size in BATCH_SIZES:
            print(f"batches of {batch_size}, {arguments.num_rounds} rounds by turns")
            compare_speed(forms, pad(rows[: arguments.num_rows], batch_size, tokenizer), arguments.num_rounds)


if __name__ == "__main__":
    main()
