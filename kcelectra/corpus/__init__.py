"""From raw comments to clean documents."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcelectra.corpus.build import build_corpus

__all__ = ["build_corpus"]


def __getattr__(name: str) -> Any:
    if name != "build_corpus":
        raise AttributeError(f"module 'kcelectra.corpus' has no attribute {name!r}")
    from kcelectra.corpus.build import build_corpus  # imports DuckDB and PyArrow, which `clean` does without

    return build_corpus
