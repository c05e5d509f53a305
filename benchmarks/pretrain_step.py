"""Speed of a pretraining step on real comments, beside the obvious Hugging Face way and the machine's own limit.

    python benchmarks/pretrain_step.py --dataset "comments/*.parquet" --tokenizer vocab.txt

First, non-padding tokens per second of ours and of `ElectraForMaskedLM` + `ElectraForPreTraining` as one would write
it with transformers: one comment a row, padded to the longest, logits over the whole vocabulary at each position. Same
comments, architecture, tied embeddings, dropout, autocast and optimizer; both take turns in one process. Then the
share of the machine's matrix-product peak, measured around each step, and what the rest of the time goes to.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice

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
from kcelectra.corpus.comments import CommentReader
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.run import use_all_cores
from kcelectra.pretraining.streaming import PackedStream, read_texts
from kcelectra.pretraining.trainer import choose_precision
from kcelectra.tokenization import load_tokenizer

MAX_LENGTH = 128
NUM_ROWS = 32
PEER_BATCH_SIZES = (16, 32, 64, 128)
PEAK_SHAPES = ((4096, 3072, 768), (4096, 768, 3072), (2048, 2048, 2048))
KINDS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm")),
    ("dropout's random numbers", ("aten::bernoulli_", "aten::native_dropout")),
    ("Gumbel noise and draw", ("aten::uniform_", "aten::log_", "aten::argmax", "aten::neg_")),
    ("softmax and cross entropy", ("softmax", "log_softmax", "nll_loss")),
    ("casts and copies", ("aten::copy_",)),
    ("activation, normalisation", ("gelu", "layer_norm")),
    ("embedding gradients", ("aten::fill_", "aten::embedding", "aten::index")),
    ("optimizer", ("adamw",)),
)


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


def compare(config: KcElectraConfig, dataset: str, tokenizer: PreTrainedTokenizerBase, *, num_rounds: int) -> None:
    """Print tokens per second of both, taking turns, and their ratio."""
    ours = our_step(config, CommentReader(dataset), tokenizer, max_length=MAX_LENGTH)
    peers = {size: peer_step(config, CommentReader(dataset), tokenizer, batch_size=size) for size in PEER_BATCH_SIZES}
    for step in (ours, *peers.values()):
        step()
    rates: dict[int, list[float]] = {size: [] for size in peers}
    our_rates = []
    for _ in range(num_rounds):
        our_rates.append(ours.tokens_per_second())
        for size, step in peers.items():
            rates[size].append(step.tokens_per_second())
    best = max(rates, key=lambda size: statistics.median(rates[size]))
    ratios = [mine / theirs for mine, theirs in zip(our_rates, rates[best], strict=True)]
    for size, values in rates.items():
        print(f"  peer, {size:3} comments a step: {statistics.median(values):8,.0f} non-padding tokens/s")
    print(f"  ours, {NUM_ROWS} rows of {MAX_LENGTH}:      {statistics.median(our_rates):8,.0f} non-padding tokens/s")
    print(
        f"  ratio to the peer's best: {statistics.median(ratios):.2f}x (of {num_rounds} rounds: "
        f"{min(ratios):.2f} to {max(ratios):.2f})"
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
    for kind, names in KINDS:
        matching = [e.self_cpu_time_total for e in events if any(part in e.key.lower() for part in names)]
        left -= sum(matching)
        print(f"      {sum(matching) / total:6.1%}  {kind}")
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
    use_all_cores()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(arguments.tokenizer)
    small = KcElectraConfig.from_size("small", vocab_size=len(tokenizer))
    print(
        f"training step, size small, V = {len(tokenizer):,}, {choose_precision()}, {torch.get_num_threads()} threads"
    )
    compare(small, arguments.dataset, tokenizer, num_rounds=arguments.num_rounds)
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
