"""Write the cards of the published models anew, from their facts.yaml and the checked score table.

    python recipes/render_cards.py

A test compares what is committed with what this writes.
"""

from dataclasses import dataclass, field

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.release.published_card import write_published_cards


@dataclass
class CardsArguments:
    """Where the cards are."""

    cards_dir: str = field(default="hub_cards", metadata={"help": "A directory for each model, with its facts.yaml."})


def main() -> None:
    """Write the cards, and name them."""
    (arguments,) = parse_args(CardsArguments)
    print("\n".join(map(str, write_published_cards(arguments.cards_dir))))


if __name__ == "__main__":
    run_recipe(main)
