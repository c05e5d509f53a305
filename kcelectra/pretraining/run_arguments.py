"""Arguments of a pretraining run, beside those of its training: what is trained, and what it is trained on."""

from dataclasses import dataclass, field
from typing import Any

from kcelectra.corpus.cleaning import RULE_SETS
from kcelectra.corpus.comments import choose_cleaning
from kcelectra.errors import InputError
from kcelectra.pretraining.configuration import SIZES
from kcelectra.pretraining.continuing import HALVES
from kcelectra.pretraining.streaming import SHUFFLE_WINDOW

DEFAULT_VOCAB_SIZE = 30000
DEFAULT_MAX_LENGTH = 128


@dataclass
class ModelArguments:
    """What is trained."""

    size: str = field(
        default="tiny",
        metadata={"help": f"Architecture: {', '.join(SIZES)}; with --init_discriminator it has its own."},
    )
    generator_fraction: float | None = field(
        default=None,
        metadata={"help": "Width of the generator as a share of the discriminator's; by size if not given."},
    )
    generator_layers: int | None = field(
        default=None,
        metadata={
            "help": "Depth of the generator; that of the discriminator if not given. DeBERTaV3 (He et al. 2021): half "
            "of it, with --generator_fraction 1."
        },
    )
    embedding_sharing: str = field(
        default="full",
        metadata={
            "help": "full, as in the paper; gdes, gradient-disentangled as in DeBERTaV3 (He et al. 2021): the "
            "discriminator reads the generator's embeddings and adds a difference of its own."
        },
    )
    mask_probability: float = field(
        default=0.15, metadata={"help": "Share of tokens that is masked; 0.25 in ELECTRA-Large (Clark et al. 2020)."}
    )
    attention_dropout: float = field(
        default=0.1, metadata={"help": "Share of attention weights that is dropped; flex_attention needs 0."}
    )
    hidden_dropout: float = field(default=0.1, metadata={"help": "Share of hidden units that is dropped."})
    max_position_embeddings: int = field(default=512, metadata={"help": "Rows of a new position table."})
    generator_weight: float = field(default=1.0, metadata={"help": "Weight of the generator's loss."})
    discriminator_weight: float = field(
        default=50.0,
        metadata={
            "help": "Weight of the discriminator's loss. With 0 and --generator_fraction 1 the generator is a masked "
            "language model of that size."
        },
    )
    exclude_special_tokens: bool = field(
        default=True, metadata={"help": "Never draw [PAD], [CLS], [SEP] or [MASK] as a replacement."}
    )
    init_discriminator: str | None = field(
        default=None,
        metadata={
            "help": "Go on from a released discriminator: directory, OWNER/NAME or OWNER/NAME@REVISION. Or from the "
            "masked language model that is the --init_generator too: two-stage training (Clark et al. 2020)."
        },
    )
    init_generator: str | None = field(
        default=None,
        metadata={
            "help": "Its generator; new if not given: see --generator_warmup_steps. Without a discriminator: that "
            "of a new one of --size."
        },
    )
    init_embeddings: str | None = field(
        default=None,
        metadata={"help": f"Whose embeddings are kept where those of the two differ: {' or '.join(HALVES)}."},
    )

    def __post_init__(self) -> None:
        for name, share in (("attention_dropout", self.attention_dropout), ("hidden_dropout", self.hidden_dropout)):
            if not 0 <= share < 1:
                raise InputError(f"{name} is {share}; give a share of at least 0 and below 1, such as 0.1")
        weights = (self.generator_weight, self.discriminator_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise InputError(
                f"generator_weight is {weights[0]} and discriminator_weight {weights[1]}; give 0 or more, one above 0"
            )


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "File, quoted glob, directory or Hub id, of comments or of rows that recipes/pack.py wrote; the "
            "embedded sample if not given."
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    rules: str | None = field(
        default=None,
        metadata={
            "help": f"Rule set that cleans: {', '.join(RULE_SETS)}; v2022 if not given, none for a built corpus."
        },
    )
    min_chars: int | None = field(
        default=None,
        metadata={"help": "Leave out comments with fewer characters; 10 if not given, 0 for a built corpus."},
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "The like, of comments that are not trained on: their loss is logged at each --save_steps, or as "
            "--eval_strategy and --eval_steps say."
        },
    )
    eval_rows: int = field(default=1000, metadata={"help": "Rows that are taken from it."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "vocab.txt, directory or Hub id; trained on the comments if not given."}
    )
    tokenizer_revision: str | None = field(default=None, metadata={"help": "Revision of a tokenizer of the Hub."})
    vocab_size: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a tokenizer that is trained here; {DEFAULT_VOCAB_SIZE} if not given."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a row; {DEFAULT_MAX_LENGTH} if not given, of packed rows what they have."},
    )
    fill_documents: bool = field(
        default=False,
        metadata={"help": "Make a document of as much of a thread as a row holds, not of a comment and its replies."},
    )
    repeat_probability: float = field(
        default=0.0,
        metadata={"help": "Share of documents whose comments each stand beside themselves, less some words."},
    )
    shuffle_window: int = field(default=SHUFFLE_WINDOW, metadata={"help": "Rows that are shuffled together."})

    def __post_init__(self) -> None:
        for name in ("max_length", "shuffle_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give 1 or more")

    def cleaning(self) -> dict[str, Any]:
        """Return `rules` and `min_chars`, those not given by what the dataset is."""
        return choose_cleaning(self.dataset or "", self.rules, self.min_chars)
