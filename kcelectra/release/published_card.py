"""Notes on the published models as cards: which revision is which, what is known of it, what its scores are worth."""

from pathlib import Path

from huggingface_hub import ModelCardData

from kcelectra.arguments import read_preset
from kcelectra.errors import InputError
from kcelectra.finetuning.protocols import find_protocol
from kcelectra.finetuning.results import RESULTS_FILE
from kcelectra.manifest import write_atomically
from kcelectra.release.corpus_card import CARD
from kcelectra.release.model_card import render
from kcelectra.release.published import read_published
from kcelectra.tokenization.vocabulary import PUBLISHED

FACTS_FILE = "facts.yaml"
KEYS = {"name", "vocabulary", "branch", "table_name", "license", "facts", "vocabulary_layout", "differs", "unknown"}


def write_published_cards(cards_dir: str | Path) -> list[Path]:
    """Write the card of each published model, and return the files.

    A model with a `results.jsonl` was trained here: its card was written by `recipes/publish.py`.

    Args:
        cards_dir: a directory for each model, with a `facts.yaml`, beside which its `README.md` is written.

    Raises:
        InputError: there is no `facts.yaml`, or one is not what it should be.
    """
    files = sorted(Path(cards_dir).glob(f"*/{FACTS_FILE}"))
    files = [file for file in files if not file.with_name(RESULTS_FILE).exists()]
    if not files:
        raise InputError(f"{cards_dir} has no directory with a {FACTS_FILE}; give --cards_dir hub_cards")
    cards = {file.with_name(CARD): render_published_card(file) for file in files}
    for path, card in cards.items():
        write_atomically(path, card)
    return list(cards)


def render_published_card(facts_file: str | Path) -> str:
    """Return the card of one published model: its facts, its commit and vocabulary, and the checked score table.

    Raises:
        InputError: the facts cannot be read, have not these keys, or name a model that is not among the published.
    """
    facts = read_preset(facts_file)
    if facts.keys() != KEYS:
        raise InputError(f"{facts_file} has the keys {', '.join(map(str, facts))}; give {', '.join(sorted(KEYS))}")
    cells = read_published()
    own = [cell for cell in cells if cell.model == facts["table_name"]]
    vocabulary = next((known for known in PUBLISHED if known.name == facts["vocabulary"]), None)
    if vocabulary is None or not own:
        raise InputError(
            f"{facts_file}: no {facts['vocabulary']!r} in kcelectra/tokenization/vocabulary.py, or no "
            f"{facts['table_name']!r} in kcelectra/release/published.csv; give a vocabulary and a table_name of these"
        )
    data = ModelCardData(language="ko", license=facts["license"], tags=["electra", "korean", "comments"])
    return render(
        Path(__file__).with_name("published_card.md.jinja"),
        card_data=data.to_yaml(),
        **facts | {"vocabulary": vocabulary},
        same_name=[known for known in PUBLISHED if known.repo_id == vocabulary.repo_id],
        cells=own,
        wrong=[cell for cell in cells if cell.verdict not in ("ok", "no files")],
        copied=list(dict.fromkeys(cell.model for cell in cells if cell.verdict == "no files")),
        protocol=find_protocol(own[0].protocol),
    )
