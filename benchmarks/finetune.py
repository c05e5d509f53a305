"""Speed of fine-tuning on NSMC: batches of one length padded to their longest, beside rows padded to 50 tokens.

    python benchmarks/finetune.py --data_dir data --tokenizer vocab.txt

The second is what KcBERT-Finetune does. Both sides train the same model (random weights) on the same reviews in one
process, by turns; what is compared is examples per second from the second update on. Then both train a tiny model with
each seed, to see that the scores are the same but for noise: p is that of a two-sided t-test. A third side, where the
device computes something else faster or with `--precision`, is the first in that precision beside float32.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from statistics import mean, median, stdev
from typing import Any

import torch
from scipy.stats import ttest_ind
from transformers import ElectraConfig, ElectraForSequenceClassification, TrainerCallback, set_seed

from kcelectra.arguments import run_recipe
from kcelectra.finetuning.protocols import PROTOCOLS
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.sources import read_splits
from kcelectra.finetuning.tasks import TASKS
from kcelectra.finetuning.training import EvaluationSplit, Settings, train
from kcelectra.precision import choose_precision
from kcelectra.tokenization import load_tokenizer

NSMC = TASKS["nsmc"]
MAX_LENGTH = PROTOCOLS["kcbert-finetune"].settle(NSMC).max_length  # of both sides
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


def run(head: SequenceHead, examples: list, settings: Settings, *, side: str, size: str, seed: int = 0) -> tuple:
    """Train a new model over the examples, and return it and the examples per second."""
    set_seed(seed)
    model, clock = make_model(len(head.tokenizer), size), Clock()
    with tempfile.TemporaryDirectory() as directory:
        train(
            model,
            head,
            examples,
            settings if side in ("dynamic", "padded") else replace(settings, precision=side),
            output_dir=directory,
            seed=seed,
            pads_to_max=side == "padded",
            watcher=clock,
            disable_tqdm=True,
        )
    return model, settings.batch_size * (len(clock.times) - 1) / (clock.times[-1] - clock.times[0])


def main() -> None:
    """Print the ratio, and the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="directory of all tasks, or of NSMC")
    parser.add_argument("--tokenizer", required=True, help="vocab.txt, directory or Hub id")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_seeds", type=int, default=5, help="of the tiny model; 0 for none")
    parser.add_argument("--max_train", type=int, default=10_000, help="reviews that the tiny model is trained on")
    parser.add_argument("--precision", default="auto", help="of the third side; none if it is float32")
    arguments = parser.parse_args()
    precision = choose_precision(arguments.precision)
    sides = ["dynamic", "padded", *([precision] if precision != "float32" else [])]
    head = SequenceHead(load_tokenizer(arguments.tokenizer, for_pretraining=False), NSMC.labels, MAX_LENGTH)
    splits = read_splits(NSMC, arguments.data_dir)
    settings = Settings(
        num_epochs=1, batch_size=NSMC.batch_size, learning_rate=5e-5, max_length=MAX_LENGTH, warmup=0.1
    )
    picked = splits.train[: NSMC.batch_size * NUM_UPDATES]
    rounds = [
        {side: run(head, picked, settings, side=side, size=arguments.size)[1] for side in sides}
        for _ in range(arguments.num_rounds)
    ]
    print(f"{arguments.size} size, {len(picked):,} reviews, {arguments.num_rounds} rounds, examples per second:")
    others = [("dynamic", "padded", f"rows padded to {MAX_LENGTH}"), (precision, "dynamic", "float32")]
    for side, other, words in others[: len(sides) - 1]:
        ratios = [speeds[side] / speeds[other] for speeds in rounds]
        print(f"{side}: {median(ratios):.2f}x those of {words} ({min(ratios):.2f} to {max(ratios):.2f})")
    if not arguments.num_seeds:
        return
    settings = Settings(
        num_epochs=3, batch_size=NSMC.batch_size, learning_rate=1e-3, max_length=MAX_LENGTH, warmup=0.1
    )
    train_split, test = splits.train[: arguments.max_train], EvaluationSplit(NSMC, head, splits.test[:10_000])
    scores: dict[str, list[float]] = {side: [] for side in sides}
    for seed in range(arguments.num_seeds):
        for side, values in scores.items():
            model, _ = run(head, train_split, settings, side=side, size="tiny", seed=seed)
            values.append(test.evaluate(model)[0]["accuracy"])
    for side, values in scores.items():
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        p_value = f", p = {ttest_ind(scores['dynamic'], values).pvalue:.2f}" if side != "dynamic" and spread else ""
        print(f"tiny model, {side:<8} accuracy {mean(values):.4f}{spread} ({len(values)} seeds{p_value})")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("highest")
    run_recipe(main)
