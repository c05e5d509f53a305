"""Speed of fine-tuning on NSMC: batches of one length padded to their longest, beside rows padded to 50 tokens.

    python benchmarks/finetune.py --data_dir data --tokenizer vocab.txt

The second is what KcBERT-Finetune does. Both sides train the same model (random weights) on the same reviews in one
process, by turns; what is compared is examples per second from the second update on. Then both train a tiny model with
each seed, to see that the scores are the same but for noise.
"""

import argparse
import tempfile
import time
from statistics import mean, median, stdev
from typing import Any

import torch
from scipy.stats import ttest_ind
from transformers import ElectraConfig, ElectraForSequenceClassification, TrainerCallback, set_seed

from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.sources import read_splits
from kcelectra.finetuning.tasks import TASKS
from kcelectra.finetuning.training import EvaluationSplit, Settings, train
from kcelectra.tokenization import load_tokenizer

NSMC = TASKS["nsmc"]
SIDES = {"dynamic": False, "padded": True}
SIZES = {"tiny": (2, 128, 128, 2), "small": (12, 128, 256, 4), "base": (12, 768, 768, 12)}
NUM_UPDATES = 50  # of a round: so many batches the sampler sorts by length together, from the longest to the shortest


class Clock(TrainerCallback):
    """Notes when each update has ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *arguments: Any, **state: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def make_model(vocab_size: int, size: str) -> ElectraForSequenceClassification:
    """Return a model with random weights."""
    layers, embedding, hidden, heads = SIZES[size]
    config = ElectraConfig(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        embedding_size=embedding,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=heads,
        num_labels=2,
    )
    return ElectraForSequenceClassification(config)


def examples_per_second(head: SequenceHead, examples: list, settings: Settings, *, side: str, size: str) -> float:
    """Train over the examples once and return the speed."""
    set_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        train(
            make_model(len(head.tokenizer), size),
            head,
            examples,
            settings,
            output_dir=directory,
            seed=0,
            pads_to_max=SIDES[side],
            watcher=clock,
            disable_tqdm=True,
        )
    return settings.batch_size * (len(clock.times) - 1) / (clock.times[-1] - clock.times[0])


def accuracy(
    head: SequenceHead, examples: list, test: EvaluationSplit, settings: Settings, *, side: str, seed: int
) -> float:
    """Train the tiny model and return its accuracy on test."""
    set_seed(seed)
    model = make_model(len(head.tokenizer), "tiny")
    with tempfile.TemporaryDirectory() as directory:
        train(
            model,
            head,
            examples,
            settings,
            output_dir=directory,
            seed=seed,
            pads_to_max=SIDES[side],
            watcher=Clock(),
            disable_tqdm=True,
        )
    return test.evaluate(model)[0]["accuracy"]


def main() -> None:
    """Print the ratio, and the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="directory of all tasks, or of NSMC")
    parser.add_argument("--tokenizer", required=True, help="vocab.txt, directory or Hub id")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_seeds", type=int, default=5, help="of the tiny model; 0 for none")
    parser.add_argument("--max_train", type=int, default=10_000, help="reviews that the tiny model is trained on")
    arguments = parser.parse_args()
    head = SequenceHead(load_tokenizer(arguments.tokenizer, for_pretraining=False), NSMC.labels, NSMC.max_length)
    splits = read_splits(NSMC, arguments.data_dir)
    settings = Settings(num_epochs=1, batch_size=NSMC.batch_size, learning_rate=5e-5, max_length=50, warmup=0.1)
    picked = splits.train[: NSMC.batch_size * NUM_UPDATES]
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.num_rounds):
        for side, rounds in speeds.items():
            rounds.append(examples_per_second(head, picked, settings, side=side, size=arguments.size))
    ratios = [ours / theirs for ours, theirs in zip(speeds["dynamic"], speeds["padded"], strict=True)]
    print(
        f"{arguments.size} size, {len(picked):,} reviews, {arguments.num_rounds} rounds: {median(ratios):.2f}x the "
        f"examples per second of rows padded to {NSMC.max_length} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    if not arguments.num_seeds:
        return
    settings = Settings(num_epochs=3, batch_size=NSMC.batch_size, learning_rate=1e-3, max_length=50, warmup=0.1)
    train_split, test = splits.train[: arguments.max_train], EvaluationSplit(NSMC, head, splits.test[:10_000])
    scores = {
        side: [
            accuracy(head, train_split, test, settings, side=side, seed=seed) for seed in range(arguments.num_seeds)
        ]
        for side in SIDES
    }
    for side, values in scores.items():
        print(f"tiny model, {side:<8} accuracy {mean(values):.4f} ± {stdev(values):.4f} ({len(values)} seeds)")
    print(f"two-sided t-test of the two: p = {ttest_ind(*scores.values()).pvalue:.2f}")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    main()
