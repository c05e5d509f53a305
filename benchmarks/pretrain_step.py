"""Speed of a pretraining step on real comments, beside the obvious Hugging Face way and the machine's own limit.

    python benchmarks/pretrain_step.py --dataset "comments/*.parquet" --tokenizer vocab.txt

First, non-padding tokens per second of ours and of `ElectraForMaskedLM` + `ElectraForPreTraining` as one would write
it with transformers: one comment a row, padded to the longest, logits over the whole vocabulary at each position. Same
comments, architecture, tied embeddings, dropout, autocast and optimizer, 32 rows a step; the peer also with other
numbers of rows. Each side has a process of its own, set up as its recipe sets it up, and they take turns. Then the
share of the machine's matrix-product peak, measured around each step, and what the rest of the time goes to.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedTokenizerBase,
)

from kcelectra import DataCollatorForReplacedTokenDetection, KcElectraConfig, KcElectraForPreTraining
from kcelectra.corpus.comments import CommentReader, read_texts
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.run import prepare_cpu
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.pretraining.training_arguments import choose_precision
from kcelectra.tokenization import load_tokenizer

MAX_LENGTH = 128
NUM_ROWS = 32
PEER_BATCH_SIZES = (16, 32, 64, 128)
PEAK_SHAPES = ((4096, 3072, 768), (4096, 768, 3072), (2048, 2048, 2048))
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "random numbers (dropout, Gumbel)": ("aten::random_", "aten::uniform_", "aten::ge", "aten::bernoulli_"),
    "arithmetic on single elements": (
        *(
            "aten::add",
            "aten::add_",
            "aten::mul",
            "aten::mul_",
            "aten::sub_",
            "aten::div_",
            "aten::neg_",
            "aten::log_",
        ),
        *("aten::exp_", "aten::where", "aten::masked_fill_"),
    ),
    "sums and maxima": ("aten::sum", "aten::argmax"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
    "casts and copies": ("aten::copy_",),
    "activation, normalisation": (
        *("aten::gelu", "aten::gelu_backward"),
        *("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    ),
    "gradients of embeddings": ("aten::fill_", "aten::embedding_dense_backward"),
    "optimizer": ("aten::_fused_adamw_",),
}


class Step:
    """A training step that can be run again and again; counts the tokens that are not padding."""

    def __init__(self, parameters: list[torch.nn.Parameter], batches: Iterator, loss: Callable) -> None:
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
        self.batches, self.loss = batches, loss

    def __call__(self) -> int:
        """Run one step on the next batch and return its number of tokens."""
        batch, num_tokens = next(self.batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision() == "bfloat16"):
            loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return num_tokens

    def tokens_per_second(self) -> float:
        """Time one step."""
        start = time.perf_counter()
        num_tokens = self()
        return num_tokens / (time.perf_counter() - start)


def our_step(config: KcElectraConfig, reader: CommentReader, tokenizer: PreTrainedTokenizerBase, *, max_length: int):
    """Return the step of the joint model on packed rows."""
    model = KcElectraForPreTraining(config).train()
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    stream = iter(PackedStream(reader, tokenizer, max_length=max_length, shuffle_window=512))
    num_rows = NUM_ROWS * MAX_LENGTH // max_length

    def batches():
        while rows := list(islice(stream, num_rows)):
            batch = collator(rows)
            yield batch, int((batch["document_ids"] > 0).sum())

    return Step(list(model.parameters()), batches(), lambda batch: model(**batch).loss)


def peer_step(config: KcElectraConfig, reader: CommentReader, tokenizer: PreTrainedTokenizerBase, *, batch_size: int):
    """Return the step one would write with the two Hugging Face classes."""
    generator = ElectraForMaskedLM(config.generator_config).train()
    discriminator = ElectraForPreTraining(config.discriminator_config).train()
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    pad = DataCollatorWithPadding(tokenizer)
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    texts = read_texts(reader, rules="v2022", min_chars=10)

    def batches():
        while chosen := list(islice(texts, batch_size)):
            rows = tokenizer(chosen, truncation=True, max_length=MAX_LENGTH)
            features = [{"input_ids": ids} for ids in rows["input_ids"]]
            original = pad(features)
            masked = mask(features)
            batch = {**masked, "original_ids": original["input_ids"], "attention_mask": original["attention_mask"]}
            yield batch, int(batch["attention_mask"].sum())

    def loss(batch):
        output = generator(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        is_masked = batch["labels"] != -100
        with torch.no_grad():
            probabilities = output.logits[is_masked].float().softmax(-1)
            samples = torch.multinomial(probabilities, 1).squeeze(-1)
            corrupted = batch["original_ids"].clone()
            corrupted[is_masked] = samples
        replaced = (corrupted != batch["original_ids"]).long()
        found = discriminator(corrupted, attention_mask=batch["attention_mask"], labels=replaced)
        return output.loss + 50 * found.loss

    parameters = {id(p): p for half in (discriminator, generator) for p in half.parameters()}
    return Step(list(parameters.values()), batches(), loss)


def measure_peak() -> float:
    """Return the best matrix-product rate of the machine, operations per second."""
    best = 0.0
    for rows, inner, columns in PEAK_SHAPES:
        left = torch.randn(rows, inner, dtype=torch.bfloat16)
        right = torch.randn(columns, inner, dtype=torch.bfloat16)
        torch.nn.functional.linear(left, right)
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def run_ours(connection: Connection, dataset: str, tokenizer_source: str) -> None:
    """Run a step of ours each time a message comes, and answer with its speed."""
    prepare_cpu()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_source)
    config = KcElectraConfig.from_size("small", vocab_size=len(tokenizer))
    step = our_step(config, CommentReader(dataset), tokenizer, max_length=MAX_LENGTH)
    while connection.recv():
        connection.send(step.tokens_per_second())


def run_peer(connection: Connection, dataset: str, tokenizer_source: str) -> None:
    """Run a step of the peer with as many comments as each message says, and answer with its speed."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_source)
    config = KcElectraConfig.from_size("small", vocab_size=len(tokenizer))
    steps = {size: peer_step(config, CommentReader(dataset), tokenizer, batch_size=size) for size in PEER_BATCH_SIZES}
    while size := connection.recv():
        connection.send(steps[size].tokens_per_second())


def start(side: Callable, *arguments: str) -> Connection:
    """Start one side in a process of its own."""
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=side, args=(there, *arguments), daemon=True).start()
    return here


def ask(connection: Connection, message: int) -> float:
    """Let one side run a step and return its speed."""
    connection.send(message)
    return connection.recv()


def compare(dataset: str, tokenizer_source: str, *, num_rounds: int) -> None:
    """Print tokens per second of both, taking turns, and their ratios."""
    ours, peer = (start(side, dataset, tokenizer_source) for side in (run_ours, run_peer))
    rounds = []
    for _ in range(num_rounds + 1):  # the first warms up
        our_rate = ask(ours, NUM_ROWS)
        rounds.append((our_rate, {size: ask(peer, size) for size in PEER_BATCH_SIZES}))
    for connection in (ours, peer):
        connection.send(0)
    rounds = rounds[1:]
    print(f"  ours, {NUM_ROWS} rows of {MAX_LENGTH}: {statistics.median(rate for rate, _ in rounds):,.0f} tokens/s")
    for size in PEER_BATCH_SIZES:
        ratios = [mine / theirs[size] for mine, theirs in rounds]
        print(
            f"  peer, {size:3} comments: {statistics.median(theirs[size] for _, theirs in rounds):5,.0f} tokens/s; "
            f"ours is {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
            f"{'  <- the same number of rows' if size == NUM_ROWS else ''}"
        )


def utilisation(name: str, step: Step, *, flops_per_step: float, num_rounds: int) -> None:
    """Print the share of the peak that a step reaches, and where the rest of its time goes."""
    step()
    shares, peaks = [], []
    for _ in range(num_rounds):
        before = measure_peak()
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        peak = max(before, measure_peak())
        peaks.append(peak)
        shares.append(flops_per_step / seconds / peak)
    print(
        f"  {name}: {statistics.median(shares):.1%} of the bfloat16 matrix-product peak "
        f"({min(shares):.1%} to {max(shares):.1%}; peak {statistics.median(peaks) / 1e9:,.0f} GFLOP/s)"
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = [event for event in profiler.key_averages() if event.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in events)
    left = total
    for kind, names in KINDS.items():
        spent = sum(event.self_cpu_time_total for event in events if event.key in names)
        left -= spent
        print(f"      {spent / total:6.1%}  {kind}")
    print(f"      {left / total:6.1%}  everything else")


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="comments: a file, a quoted glob, a directory or a Hub id")
    parser.add_argument(
        "--tokenizer", required=True, help="vocab.txt, directory or Hub id; the issue's is 50,135 tokens"
    )
    parser.add_argument("--num_rounds", type=int, default=7)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    print(f"training step, size small, V = {len(tokenizer):,}, {choose_precision()}")
    compare(arguments.dataset, arguments.tokenizer, num_rounds=arguments.num_rounds)
    prepare_cpu()
    torch.manual_seed(0)
    print("model FLOPs (3 x forward, look-ups free) as a share of the peak measured around each step")
    for size, max_length in (("small", 128), ("base", 128), ("base", 512)):
        config = KcElectraConfig.from_size(size, vocab_size=len(tokenizer))
        num_masked = int((0.15 + 0.005) * max_length)
        num_rows = NUM_ROWS * MAX_LENGTH // max_length
        flops = num_rows * training_flops_per_row(config, max_length=max_length, num_masked=num_masked)
        step = our_step(config, CommentReader(arguments.dataset), tokenizer, max_length=max_length)
        utilisation(f"{size}, rows of {max_length}", step, flops_per_step=flops, num_rounds=arguments.num_rounds)


if __name__ == "__main__":
    main()
