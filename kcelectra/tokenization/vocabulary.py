"""Vocabularies as lists of tokens: read one, append a donor's, know the published ones."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kcelectra.errors import InputError

#: At ids 0 to 4, as in every published KcBERT and KcELECTRA vocabulary.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True)
class PublishedVocabulary:
    """A vocabulary of the Hub: where it is, and what it and its models are known by."""

    name: str
    repo_id: str
    revision: str  # the commit: branches have moved
    size: int
    sha256: str | None  # of the tokens by id, a line each; None where the file could not be had
    model_type: str
    pad_token_id: int = 0

    @property
    def cure(self) -> str:
        """What to type to load it."""
        return f'AutoTokenizer.from_pretrained("{self.repo_id}", revision="{self.revision}")'


#: No two of them share their ids. Commits: the histories of the repositories on the Hub.
PUBLISHED = (
    PublishedVocabulary(
        name="KcBERT",
        repo_id="beomi/kcbert-base",
        revision="99fc27ea7d643d8377ade8912c6c445a5e3861be",
        size=30_000,
        sha256="6086d894548a3e4bf2b306c0ca7e13614578e5b3c55de264866cd1119a777f92",
        model_type="bert",
    ),
    PublishedVocabulary(
        name="KcELECTRA v2021",
        repo_id="beomi/KcELECTRA-base",
        revision="a6f029f808b2e93197f397eebd4dbfe327337fd8",
        size=50_135,
        sha256="8a0515f8e5de83c11733e0037bb1939ff3a7c3e2043e5cfd38f6d576cebd2ddb",
        model_type="electra",
    ),
    PublishedVocabulary(
        name="KcELECTRA v2022",
        repo_id="beomi/KcELECTRA-base",
        revision="4cf9eb1dfeec0a672afe73059882fc998a299ceb",
        size=54_343,
        sha256="324d50377df9b16001916d553fa01dca83c9fc54965f9671a50d6454cf85b70c",
        model_type="electra",
    ),
    PublishedVocabulary(
        name="KcELECTRA of 2023 (byte-level BPE, the main branch)",
        repo_id="beomi/KcELECTRA-base",
        revision="5deca41d00774a2ad84a253435338a00e2c40ab3",
        size=30_000,
        sha256=None,
        model_type="electra",
        pad_token_id=3,
    ),
)


def hash_vocabulary(tokens: Sequence[str]) -> str:
    """Return the sha256 of a vocabulary: that of its `vocab.txt` with Unix line ends.

    >>> hash_vocabulary(["[PAD]", "가"])[:8]
    '1aa537fc'
    """
    return hashlib.sha256("".join(f"{token}\n" for token in tokens).encode("utf-8", "surrogatepass")).hexdigest()


def identify_vocabulary(tokens: Sequence[str], *, pad_token_id: int = 0) -> PublishedVocabulary | None:
    """Return which published vocabulary this is, or None.

    Args:
        tokens: by id.
        pad_token_id: of the tokenizer; tells the one of 2023, whose file is not at hand, by its size and this.
    """
    sha256 = hash_vocabulary(tokens)
    for known in PUBLISHED:
        is_unseen = known.sha256 is None and (known.size, known.pad_token_id) == (len(tokens), pad_token_id)
        if known.sha256 == sha256 or is_unseen:
            return known
    return None


def read_vocabulary(path: str | Path, *, allow_crlf: bool = False) -> list[str]:
    """Read a `vocab.txt`, one token a line.

    Args:
        path: of the file.
        allow_crlf: take the line ends of Windows for what they are.

    Raises:
        InputError: it cannot be read, is no UTF-8, or has a line that no tokenizer could use: blank, with a space or a
            carriage return, or there twice; the line is named.
    """
    try:
        data = Path(path).read_bytes()
        lines = data.decode("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"cannot read the vocabulary {path}: {error}") from error
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"cannot read the vocabulary {path}: line {number} is not UTF-8; save it as UTF-8") from error
    if lines[-1] == "":
        lines.pop()
    if lines and all(line.endswith("\r") for line in lines):
        if allow_crlf:
            lines = [line.removesuffix("\r") for line in lines]
        else:
            raise InputError(f"{path} has the line ends of Windows; convert it with `sed -i 's/\\r$//' {path}`")
    if lines and lines[0].startswith("\ufeff"):
        raise InputError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    first_line: dict[str, int] = {}
    for number, token in enumerate(lines, start=1):
        if token.split() != [token]:
            what = f"holds white space: {token!r}" if token.strip() else "is blank"
            raise InputError(f"{path}: line {number} {what}; give one token a line")
        if first_line.setdefault(token, number) != number:
            num_more = len(lines) - len(set(lines))
            raise InputError(
                f"{path}: line {number} repeats {token!r} of line {first_line[token]} ({num_more} of {len(lines)} "
                "tokens occur twice); take the repeats out, which changes the ids of what follows"
            )
    return lines


def require_special_tokens(tokens: Sequence[str], source: str | Path) -> None:
    """Check that the special tokens stand at ids 0 to 4.

    Raises:
        InputError: they do not; pretraining derives documents and padding from these ids.
    """
    if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
        ids = [tokens.index(token) if token in tokens else None for token in SPECIAL_TOKENS]
        raise InputError(
            f"{source}: {' '.join(SPECIAL_TOKENS)} have the ids {ids}, not 0 to 4; "
            "give a WordPiece vocabulary such as those of KcBERT, KcELECTRA v2021 or v2022"
        )


def append_donor(tokens: Sequence[str], donor: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Append what is missing from another vocabulary, in its order: how v2021 and v2022 were really built.

    Args:
        tokens: the vocabulary, whose ids stay.
        donor: its `[unusedN]` are left out.

    Returns:
        The longer vocabulary, and the counts `num_tokens`, `num_unused`, `num_overlap` (there already) and
        `num_appended` of the donor.

    >>> append_donor(["[PAD]", "가", "##가"], ["[PAD]", "[unused0]", "나", "가"])[0]
    ['[PAD]', '가', '##가', '나']
    """
    known = set(tokens)
    usable = [token for token in donor if not UNUSED.fullmatch(token)]
    missing = [token for token in usable if token not in known]
    counts = {"num_tokens": len(donor), "num_unused": len(donor) - len(usable)}
    return [*tokens, *missing], {**counts, "num_overlap": len(usable) - len(missing), "num_appended": len(missing)}


def append_unused(tokens: Sequence[str], number: int) -> list[str]:
    """Append `[unused0]`, `[unused1]`, ...: room for words that come later, without a change of size.

    Raises:
        InputError: the vocabulary has such tokens already, and some are wanted, or the number is negative.
    """
    if number < 0:
        raise InputError(f"--num_unused is {number}; give 0 or more")
    if number and any(map(UNUSED.fullmatch, tokens)):
        raise InputError("the vocabulary holds [unusedN] tokens already; leave out --num_unused")
    return [*tokens, *(f"[unused{index}]" for index in range(number))]
