"""Speed of pretraining on whatever device there is, beside the obvious Hugging Face way, in one run.

    python benchmarks/throughput.py --dataset "comments/*.parquet" --tokenizer vocab.txt

The obvious way is `ElectraForMaskedLM` + `ElectraForPreTraining` as one would write it with transformers: a comment a
row, padded to the longest or, as `pad_to_max_length` has it, to the length; logits over the vocabulary at each
position; nothing compiled. Same comments, architecture, tied embeddings, dropout, autocast, clipping and optimizer.
Tokens are counted without padding. Every line is a process of its own, so that its memory is its own; a CPU is set up
as the recipe sets it up, for both sides. Model FLOPs by `training_flops_per_row`: once with dense attention, the usual
convention, once with what a token sees, its document. Memory is what the training adds to a process, beside what
`recipes/plan.py` would say of it.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedTokenizerBase,
)

from kcelectra import DataCollatorForReplacedTokenDetection, KcElectraConfig, KcElectraForPreTraining
from kcelectra.corpus.comments import CommentReader, read_texts
from kcelectra.corpus.sample import write_sample
from kcelectra.precision import choose_precision
from kcelectra.pretraining.attention import choose_attention
from kcelectra.pretraining.configuration import SIZES
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.packing import Packer, frame_document
from kcelectra.pretraining.planning import estimate_memory
from kcelectra.pretraining.run import prepare_cpu
from kcelectra.tokenization import load_tokenizer, train_tokenizer

#: Dense bfloat16 of the datasheets, TFLOP/s, by the start of the device's name.
DATASHEET_PEAKS = {"NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA H100": 989, "NVIDIA H200": 989}
DATASHEET_PEAKS |= {"NVIDIA A100": 312, "NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA A10": 125}
PEAK_SHAPES = {"cpu": ((4096, 3072, 768), (4096, 768, 3072), (2048, 2048, 2048)), "cuda": ((8192, 8192, 8192),)}
SLOTS = {"cpu": {"small": 4096, "base": 4096}, "cuda": {"small": 131072, "base": 32768}}  # tokens of a step, padded
PEER_SLOTS = 32768  # at most: the logits of more do not fit in 80 GB
LONGEST = 128  # of a batch of comments, about
PEERS = ("longest", "max_length")


@dataclass(frozen=True)
class Cell:
    """What one line measures; `padding` is that of the peer, None for ours."""

    size: str
    length: int
    padding: str | None
    num_rows: int
    device: str
    attention: str
    attention_dropout: float
    compiled: str
    num_steps: int
    profiled: bool = False


@dataclass(frozen=True)
class Speed:
    """What came out; shares of 1, bytes, and rates a second."""

    tokens: float
    rows: float
    input_wait: float
    peak_memory: int
    loss: float


class Rows(IterableDataset):
    """Rows again and again, each time under another id, so that it is masked anew."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        row_id = 0
        while True:
            for ids in self.rows:
                yield {"input_ids": ids, "row_id": row_id}
                row_id += 1


class OurCollator:
    """Packed rows, and how many tokens they hold."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collate = DataCollatorForReplacedTokenDetection(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], int]:
        """Collate as the trainer does."""
        batch = self.collate(rows)
        return batch, int((batch["document_ids"] > 0).sum())


class PeerCollator:
    """Comments padded and masked, and how many tokens they hold."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, padding: str, length: int) -> None:
        self.tokenizer, self.padding, self.length = tokenizer, padding, length
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], int]:
        """Collate as transformers does, with the originals beside the masked."""
        features = {"input_ids": [row["input_ids"] for row in rows]}
        batch = self.tokenizer.pad(features, padding=self.padding, max_length=self.length, return_tensors="pt")
        original, is_special = batch["input_ids"], torch.isin(batch["input_ids"], self.special)
        masked, labels = self.masking.torch_mask_tokens(original.clone(), special_tokens_mask=is_special)
        tensors = {"input_ids": masked, "labels": labels, "original_ids": original}
        return {**tensors, "attention_mask": batch["attention_mask"]}, int(batch["attention_mask"].sum())


def build_ours(config: KcElectraConfig, cell: Cell) -> tuple[Callable, list[torch.nn.Parameter]]:
    """Return the loss of the joint model on a batch, and its parameters."""
    attention = choose_attention(cell.attention, device_type=cell.device, dropout=cell.attention_dropout)
    model = KcElectraForPreTraining._from_config(config, attn_implementation=attention).to(cell.device).train()
    if cell.compiled == "parts":
        model.compile_parts()
    elif cell.compiled == "model":
        model.compile(fullgraph=True, dynamic=False)
    return lambda batch: model(**batch).loss, list(model.parameters())


def build_peer(config: KcElectraConfig, cell: Cell) -> tuple[Callable, list[torch.nn.Parameter]]:
    """Return the loss that one would write with the two Hugging Face classes, and their parameters."""
    generator = ElectraForMaskedLM(config.generator_config).to(cell.device).train()
    discriminator = ElectraForPreTraining(config.discriminator_config).to(cell.device).train()
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask, original = batch["attention_mask"], batch["original_ids"]
        output = generator(batch["input_ids"], attention_mask=mask, labels=batch["labels"])
        is_masked = batch["labels"] != -100
        with torch.no_grad():
            probabilities = output.logits[is_masked].float().softmax(-1)
            corrupted = original.clone()
            corrupted[is_masked] = torch.multinomial(probabilities, 1).squeeze(-1)
        found = discriminator(corrupted, attention_mask=mask, labels=(corrupted != original).long())
        return output.loss + 50 * found.loss

    return loss, list({id(p): p for half in (discriminator, generator) for p in half.parameters()}.values())


def build_config(cell: Cell, vocab_size: int) -> KcElectraConfig:
    """Return the configuration of a cell."""
    return KcElectraConfig.from_size(
        cell.size, vocab_size=vocab_size, attention_probs_dropout_prob=cell.attention_dropout
    )


def measure(cell: Cell, tokenizer: PreTrainedTokenizerBase, rows: list[Any]) -> Speed:
    """Train some steps and time them."""
    torch.manual_seed(0)
    prepare_cpu()
    if cell.padding is None:
        build, collator = build_ours, OurCollator(tokenizer)
    else:
        build, collator = build_peer, PeerCollator(tokenizer, padding=cell.padding, length=cell.length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss, parameters = build(build_config(cell, len(tokenizer)), cell)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    is_cuda, is_bfloat16 = cell.device == "cuda", choose_dtype(cell.device) == torch.bfloat16
    ahead = {"num_workers": 1, "prefetch_factor": 4, "pin_memory": True} if is_cuda else {}
    batches = iter(DataLoader(Rows(rows), cell.num_rows, collate_fn=collator, **ahead))
    waited = 0.0

    def step() -> tuple[torch.Tensor, int]:
        nonlocal waited
        start = time.perf_counter()
        batch, num_tokens = next(batches)
        waited += time.perf_counter() - start
        batch = {name: tensor.to(cell.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(cell.device, torch.bfloat16, enabled=is_bfloat16):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach(), num_tokens

    value, _ = [step() for _ in range(5 if is_cuda else 1)][-1]
    value.item()  # waits for the device
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    waited, num_tokens, start = 0.0, 0, time.perf_counter()
    for _ in range(cell.num_steps):
        value, num = step()
        num_tokens += num
    last = value.item()
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if is_cuda:
        peak = torch.cuda.max_memory_allocated()
    if cell.profiled:
        with profile() as profiler:
            step()[0].item()
        order = "self_cuda_time_total" if is_cuda else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))
    return Speed(num_tokens / seconds, cell.num_steps * cell.num_rows / seconds, waited / seconds, peak, last)


def choose_dtype(device: str) -> torch.dtype:
    """Return what a device multiplies in."""
    return torch.bfloat16 if choose_precision(use_cpu=device == "cpu") == "bfloat16" else torch.float32


def measure_peak(device: str) -> float:
    """Return the best matrix-product rate of the device on random numbers, operations a second."""
    best, dtype = 0.0, choose_dtype(device)
    for rows, inner, columns in PEAK_SHAPES[device]:
        left, right = (torch.randn(size, inner, device=device, dtype=dtype) for size in (rows, columns))
        for num_products in (1, 10, 10, 10):
            start = time.perf_counter()
            for _ in range(num_products):
                product = torch.nn.functional.linear(left, right)
            product[0, 0].item()  # waits for the device
            best = max(best, num_products * 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def find_peak(device: str) -> tuple[float, str]:
    """Return what a share of the peak is a share of, and where it is from."""
    measured = measure_peak(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    for start, peak in DATASHEET_PEAKS.items():
        if name.startswith(start):
            return peak * 1e12, f"{name}, {peak} TFLOP/s by its datasheet, {measured / 1e12:.0f} measured"
    return measured, f"{name}, {measured / 1e12:.2f} TFLOP/s measured"


def load_documents(arguments: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, list[list[int]]]:
    """Return the tokenizer, and comments as ids without special tokens."""
    with tempfile.TemporaryDirectory() as sample_dir:
        reader = CommentReader(arguments.dataset or str(write_sample(Path(sample_dir))))
        texts = list(islice(read_texts(reader, rules="v2022", min_chars=10), arguments.num_comments))
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else train_tokenizer(iter(texts))
    return tokenizer, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def frame(documents: list[list[int]], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Frame documents, cut where they are longer."""
    special = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    return [piece for ids in documents for piece in frame_document(ids, [], max_length=length, **special)]


def pack(framed: list[list[int]], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Any]:
    """Pack framed documents into full rows."""
    return list(Packer(length, pad_token_id=tokenizer.pad_token_id).add(framed))


def make_cell(arguments: argparse.Namespace, size: str, length: int, padding: str | None) -> Cell:
    """Return a cell; both sides have as many slots in a step, padding included, if the peer's fit."""
    slots = arguments.slots or SLOTS[arguments.device][size]
    if padding:
        slots = min(slots, PEER_SLOTS)
    return Cell(
        size=size,
        length=length,
        padding=padding,
        num_rows=slots // (min(LONGEST, length) if padding == "longest" else length),
        device=arguments.device,
        attention=arguments.attention,
        attention_dropout=arguments.attention_dropout,
        compiled=arguments.compile,
        num_steps=arguments.num_steps,
        profiled=arguments.profile and padding is None,
    )


def main() -> None:
    """Print a line for each side of each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="comments: a file, a quoted glob, a directory or a Hub id; or the sample")
    parser.add_argument("--tokenizer", help="vocab.txt, directory or Hub id; trained on the comments if not given")
    parser.add_argument("--num_comments", type=int, default=50_000)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "base"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--slots", type=int, help="tokens of a step, padding included")
    parser.add_argument("--num_steps", type=int, default=8)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--attention_dropout", type=float, default=0.1)
    parser.add_argument("--compile", choices=("none", "parts", "model"), help="parts on CUDA, none on a CPU")
    parser.add_argument("--profile", action="store_true", help="say where the time of a step of ours goes")
    arguments = parser.parse_args()
    arguments.compile = arguments.compile or ("parts" if arguments.device == "cuda" else "none")
    tokenizer, documents = load_documents(arguments)
    peak, device = find_peak(arguments.device)
    attention = choose_attention(
        arguments.attention, device_type=arguments.device, dropout=arguments.attention_dropout
    )
    print(f"{device}; {choose_dtype(arguments.device)}; {len(documents):,} comments, vocabulary {len(tokenizer):,}")
    print(
        f"attention {attention}, dropout of its weights {arguments.attention_dropout}; compiled: {arguments.compile}"
    )
    for size in arguments.sizes:
        for length in arguments.lengths:
            framed = frame(documents, tokenizer, length)
            cells = [make_cell(arguments, size, length, padding) for padding in (None, *PEERS)]
            compare(cells, tokenizer, framed, peak)


def compare(cells: list[Cell], tokenizer: PreTrainedTokenizerBase, framed: list[list[int]], peak: float) -> None:
    """Print ours, then each peer and how many times its tokens per second ours has."""
    ours = None
    for cell in cells:
        rows = framed if cell.padding else pack(framed, tokenizer, cell.length)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            speed = pool.submit(measure, cell, tokenizer, rows).result()
        ours = ours or speed
        ratio = f"ours is {ours.tokens / speed.tokens:.2f}x" if cell.padding else ""
        print(
            describe(cell, speed), ratio or describe_utilisation(cell, speed, framed, len(tokenizer), peak), flush=True
        )


def describe(cell: Cell, speed: Speed) -> str:
    """Return a line about a side."""
    side = f"peer, padded to {cell.padding}" if cell.padding else "kcelectra"
    return (
        f"{cell.size:5} {cell.length:4}  {side:26} {cell.num_rows:4} rows  {speed.tokens:10,.0f} tokens/s"
        f"{speed.rows:9,.1f} rows/s  {speed.peak_memory / 2**30:5.1f} GiB  input wait {speed.input_wait:5.2%} "
    )


def describe_utilisation(cell: Cell, speed: Speed, framed: list[list[int]], vocab_size: int, peak: float) -> str:
    """Return the shares of the peak that the operations of both counts are, and the memory that was to be expected."""
    config, num_masked = build_config(cell, vocab_size), int((0.15 + 0.005) * cell.length)
    shape = {"max_length": cell.length, "num_masked": num_masked}
    num_seen = round(sum(len(ids) ** 2 for ids in framed) / sum(map(len, framed)))
    dense, seen = (training_flops_per_row(config, **shape, num_seen=number) for number in (None, num_seen))
    precision = str(choose_dtype(cell.device)).removeprefix("torch.")
    planned = estimate_memory(
        config, num_rows=cell.num_rows, **shape, precision=precision, fuses_attention=cell.device == "cuda"
    )
    return (
        f"MFU {dense * speed.rows / peak:.1%}, {seen * speed.rows / peak:.1%} with attention within documents; "
        f"planned {sum(planned.values()) / 2**30:.1f} GiB"
    )


if __name__ == "__main__":
    main()
