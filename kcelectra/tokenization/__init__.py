"""WordPiece vocabularies: train one, lay it out as the published ones are, load and check any of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcelectra.tokenization.loading import check_pairing, hash_tokenizer, load_tokenizer, save_tokenizer
    from kcelectra.tokenization.training import train_tokenizer
    from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS, append_donor, identify_vocabulary, read_vocabulary

#: Imported on first use: the processes that cut words load no transformers.
_PUBLIC = {
    "SPECIAL_TOKENS": "kcelectra.tokenization.vocabulary",
    "append_donor": "kcelectra.tokenization.vocabulary",
    "check_pairing": "kcelectra.tokenization.loading",
    "hash_tokenizer": "kcelectra.tokenization.loading",
    "identify_vocabulary": "kcelectra.tokenization.vocabulary",
    "load_tokenizer": "kcelectra.tokenization.loading",
    "read_vocabulary": "kcelectra.tokenization.vocabulary",
    "save_tokenizer": "kcelectra.tokenization.loading",
    "train_tokenizer": "kcelectra.tokenization.training",
}

__all__ = [
    "SPECIAL_TOKENS",
    "append_donor",
    "check_pairing",
    "hash_tokenizer",
    "identify_vocabulary",
    "load_tokenizer",
    "read_vocabulary",
    "save_tokenizer",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kcelectra.tokenization' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
