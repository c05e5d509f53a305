"""Loss of masked language models on texts that they never saw: alone, beside another text, and beside the same text.

    python benchmarks/masked_loss.py --models out/comments-small/pretrained/export/generator --data_dir data

A model that reads across texts finds what is masked in the one in the other, if both are the same: its loss falls to
nearly nothing. One that does not will not learn to compare two texts from a few thousand examples.
"""

import argparse

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kcelectra import TASKS
from kcelectra.arguments import run_recipe
from kcelectra.errors import InputError
from kcelectra.finetuning.sources import read_splits

MASK_PROBABILITY = 0.15
MAX_LENGTH = 128


@torch.inference_mode()
def masked_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], others: list[str] | None
) -> tuple[float, int]:
    """Return the mean loss, nats, of the masked tokens of texts, which are the same ones each time, and how many."""
    generator = torch.Generator().manual_seed(0)
    nats, num_masked = 0.0, 0
    for number, text in enumerate(texts):
        pair = [text] if others is None else [text, others[number]]
        row = tokenizer(*pair, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        length = len(tokenizer(text, truncation=True, max_length=MAX_LENGTH // 2)["input_ids"]) - 2
        is_masked = torch.zeros_like(row["input_ids"], dtype=torch.bool)
        is_masked[0, 1 : 1 + length] = torch.rand(length, generator=generator) < MASK_PROBABILITY
        labels = row["input_ids"].masked_fill(~is_masked, -100)
        row["input_ids"] = row["input_ids"].masked_fill(is_masked, tokenizer.mask_token_id)
        if is_masked.any():
            nats += model(**row, labels=labels).loss.item() * int(is_masked.sum())
            num_masked += int(is_masked.sum())
    return nats / num_masked, num_masked


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a masked language model and its tokenizer; another kind of model would get a new, random head."""
    cure = "give the generator of an export, such as out/smoke/export/generator"
    try:
        architectures = AutoConfig.from_pretrained(name).architectures or []
    except OSError as error:
        raise InputError(f"cannot load {name}: {error}; {cure}") from error
    if not any("MaskedLM" in architecture for architecture in architectures):
        raise InputError(f"{name} is no masked language model but {', '.join(architectures)}; {cure}")
    return AutoModelForMaskedLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="masked language models: .../export/generator")
    parser.add_argument("--data_dir", required=True, help="the tasks; the texts are those of NSMC's test split")
    parser.add_argument("--num_texts", type=int, default=600)
    arguments = parser.parse_args()
    texts = [example.texts[0] for example in read_splits(TASKS["nsmc"], arguments.data_dir).test]
    texts = [text for text in texts if text.strip()][: arguments.num_texts]
    print("| model | masked tokens | alone | beside another text | beside the same text |\n|---|--:|--:|--:|--:|")
    for name in arguments.models:
        model, tokenizer = load(name)
        beside = (None, texts[1:] + texts[:1], texts)
        losses = [masked_loss(model, tokenizer, texts, others) for others in beside]
        print(f"| {name} | {losses[0][1]:,} |{'|'.join(f' {loss:.2f} ' for loss, _ in losses)}|", flush=True)


if __name__ == "__main__":
    run_recipe(main)
