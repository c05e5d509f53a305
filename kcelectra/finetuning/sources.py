"""Read the files of the tasks, as their publishers have them."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kcelectra.corpus.lines import UTF16_MARKS
from kcelectra.errors import InputError
from kcelectra.finetuning.tasks import Task

RESPLIT = "resplit"  # below a task's directory, for those whose training split cannot be had
DEV_SHARE = 10  # one text in so many goes to a dev split that is carved from train


class LabelledTexts(NamedTuple):
    """One text or two, and their label: an id, a number, or for each label if it applies."""

    texts: tuple[str, ...]
    label: int | float | tuple[int, ...]


class TaggedWords(NamedTuple):
    """The words of a sentence, and the tag of each."""

    words: list[str]
    tags: list[str]


class Span(NamedTuple):
    """A question about a text, and where in it the answer stands, in code points; `others` are right as well."""

    question: str
    context: str
    start: int
    answer: str
    article: str = ""
    others: tuple[str, ...] = ()


Example = LabelledTexts | TaggedWords | Span


class Splits(NamedTuple):
    """The examples of a task, and what tells where they are from.

    Args:
        train: examples to learn from.
        dev: examples that choose the best step.
        test: examples that are reported.
        files: by split, the sha256 of its file.
        notes: what a reader of the scores must know.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    files: dict[str, str]
    notes: list[str]


def read_splits(
    task: Task, data_dir: str | Path, *, files: Mapping[str, str | Path] | None = None, carves: bool = True
) -> Splits:
    """Return the splits of a task; where there is no dev split, one is carved from train.

    The carving looks at a hash of the text alone, so that it is the same everywhere and equal texts stay together; of
    questions it is that of their article.

    Args:
        task: one of `TASKS`.
        data_dir: the directory of all tasks, or that of this one. Its official files are used, or, where the training
            split is not there, those in its `resplit/`.
        files: by split, a file to read in place of the one found.
        carves: where there is no dev split; else it is empty.

    Raises:
        InputError: a file is not there or cannot be read, or a row of it is not what it should be.
    """
    given = {split: Path(path) for split, path in (files or {}).items()}
    paths = find_split_files(task, data_dir, given=given) | given
    for split in ("train", "test"):
        if split not in paths:
            names = " or ".join(task.files[split])
            raise InputError(
                f"{task.name}: no {names} in {data_dir}; download it from {task.source}, or name a file with "
                f"--{split}_file"
            )
    hashes = {split: _hash(path) for split, path in paths.items()}
    if hashes["train"] == hashes["test"]:
        raise InputError(f"{paths['train']} is train and test; a score on what was learnt says nothing")
    if hashes.get("dev") in (hashes["train"], hashes["test"]):
        del paths["dev"], hashes["dev"]
    notes = list(_note_files(task, paths, hashes))
    train, dev, test = (
        list(_read_split(task, paths[split], split, notes)) if split in paths else []
        for split in ("train", "dev", "test")
    )
    if "dev" not in paths and carves:
        train, dev = carve(train)
        notes.append(
            f"dev: 1 in {DEV_SHARE} of train, by a hash of the {'article' if task.head == 'spans' else 'text'}"
        )
    for split, examples in (("train", train), ("dev", dev), ("test", test)):
        if not examples and (split != "dev" or carves):
            raise InputError(f"{task.name}: the {split} split is empty; look at {paths.get(split, paths['train'])}")
    return Splits(train, dev, test, hashes, notes)


def _read_split(task: Task, path: Path, split: str, notes: list[str]) -> Iterable[Example]:
    if task.head != "spans":
        return read_examples(task, path)
    spans, num_unanswered = _read_squad(path)
    if num_unanswered:
        notes.append(f"left out of {split}: {num_unanswered:,} questions without an answer")
    return spans


def _note_files(task: Task, paths: Mapping[str, Path], hashes: Mapping[str, str]) -> Iterator[str]:
    """Yield what is to be said of files that are not, or may not be, the official ones of their split."""
    official = {split: next(iter(task.files[split]), "") for split in paths}
    others: list[str] = []
    unknown: list[str] = []
    for split, path in paths.items():
        if hashes[split] == task.sha256.get(official[split]):
            continue
        may_be = path.name == official[split] and path.name not in task.sha256 and path.parent.name != RESPLIT
        (unknown if may_be else others).append(split)
    if others:
        yield f"not the official files: {', '.join(others)}"
    if unknown:
        yield f"by the name of official files, whose sha256 is not known: {', '.join(unknown)}"


def find_split_files(task: Task, data_dir: str | Path, *, given: Collection[str] = ()) -> dict[str, Path]:
    """Return the files of the splits: all of one directory, the first that has a training and a test split.

    Args:
        task: one of `TASKS`.
        data_dir: the directory of all tasks, or that of this one.
        given: splits that need no file there.
    """
    own, whole = Path(data_dir), Path(data_dir, task.directory)
    found: dict[str, Path] = {}
    for directory in (whole, own, whole / RESPLIT, own / RESPLIT):
        paths = ((split, directory / name) for split, names in task.files.items() for name in reversed(names))
        here = {split: path for split, path in paths if path.is_file()}
        if here and {"train", "test"} <= {*here, *given}:
            return here
        found = found or here
    return found


def read_examples(task: Task, path: str | Path) -> Iterator[Example]:
    """Yield the examples of a file. A pair with an empty text is left out, as in KcBERT-Finetune.

    Raises:
        InputError: the file cannot be read, or a row is not what it should be; the row is named.
    """
    path = Path(path)
    if task.head == "spans":
        yield from _read_squad(path)[0]
        return
    num_texts = len(task.text_columns)
    for number, fields in _read_table(path, (*task.text_columns, *task.label_columns)):
        texts, labels = fields[:num_texts], fields[num_texts:]
        if task.head == "tokens":
            yield _as_tagged_words(task, texts[0].split(), labels[0].split(), f"{path}, line {number}")
        elif num_texts == 1 or all(texts):
            yield LabelledTexts(tuple(texts), _parse_label(task, labels, f"{path}, line {number}"))


def read_rows(task: Task, data_dir: str | Path) -> list[tuple[str, ...]]:
    """Return the texts of a task's official test file, one or two a row.

    Args:
        task: one of `TASKS`.
        data_dir: the directory of all tasks.

    Raises:
        InputError: the file cannot be read, or a row is not what it should be; the row is named.
    """
    path = Path(data_dir, task.test_file)
    if task.head == "spans":
        return [(span.question, span.context) for span in read_spans(task, data_dir)]
    return [tuple(fields) for _, fields in _read_table(path, task.text_columns)]


def read_spans(task: Task, data_dir: str | Path) -> list[Span]:
    """Return the questions of a task's official test file, in the format of SQuAD 1.1, that have an answer.

    Raises:
        InputError: the file cannot be read or has another format, or an answer is not where the file says.
    """
    return _read_squad(Path(data_dir, task.test_file))[0]


def carve(
    examples: list[Example], *, salt: bytes = b"", ignores_spaces: bool = False
) -> tuple[list[Example], list[Example]]:
    """Return the examples that stay, and those that become another split: one in `DEV_SHARE`, by a hash of the text.

    Args:
        examples: of one split, whose order is kept.
        salt: at most 16 bytes; another one chooses other examples.
        ignores_spaces: texts that differ in white space alone stay together.
    """
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        if isinstance(example, Span):
            key = example.article or example.context
        else:
            texts = example.texts if isinstance(example, LabelledTexts) else example.words
            key = "\t".join(" ".join(text.split()) if ignores_spaces else text for text in texts)
        digest = hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest()
        parts[int.from_bytes(digest) % DEV_SHARE == 0].append(example)
    return parts


def _read_table(path: Path, columns: tuple[str | int, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line and its fields in these columns."""
    lines = _read(path).removesuffix("\n").split("\n")
    has_header = isinstance(columns[0], str)
    indices = [int(column) for column in columns if not isinstance(column, str)]
    if has_header:
        header = lines.pop(0).removesuffix("\r").split("\t")
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, header))}")
        indices = [header.index(str(name)) for name in columns]
    for number, line in enumerate(lines, start=1 + has_header):
        fields = line.removesuffix("\r").split("\t")  # quotation marks are text in all of these files
        if len(fields) <= max(indices):
            raise InputError(f"{path}, line {number}: {len(fields)} columns; download the file again")
        yield number, [fields[index] for index in indices]


def _parse_label(task: Task, values: list[str], where: str) -> int | float | tuple[int, ...]:
    if task.labels is None:
        try:
            return float(values[0])
        except ValueError as error:
            raise InputError(f"{where}: the label {values[0]!r} is no number; mend the file") from error
    if len(values) > 1:
        if set(values) - {"0", "1"}:
            raise InputError(f"{where}: the labels {' '.join(values)} are not all 0 or 1; mend the file")
        return tuple(map(int, values))
    if task.is_multi_label:
        known = [str(index) for index in range(len(task.labels))]
        chosen = values[0].replace(" ", "").split(",")
        if set(chosen) - set(known):
            raise InputError(f"{where}: the labels {values[0]!r} are not numbers from 0 to {known[-1]}; mend the file")
        return tuple(int(index in chosen) for index in known)
    if values[0] not in task.labels:
        raise InputError(f"{where}: the label is {values[0]!r}, not one of {', '.join(task.labels)}; mend the file")
    return task.labels.index(values[0])


def _as_tagged_words(task: Task, words: list[str], tags: list[str], where: str) -> TaggedWords:
    if len(words) != len(tags):
        raise InputError(f"{where}: {len(words)} words and {len(tags)} tags; mend the file")
    unknown = set(tags) - set(task.labels or ())
    if unknown:
        raise InputError(f"{where}: the tag {min(unknown)!r} is not one of {', '.join(task.labels or ())}")
    return TaggedWords(words, tags)


def _read_squad(path: Path) -> tuple[list[Span], int]:
    """Return the questions that have an answer, each with its first one and what else is right; and how many lack one.

    The official script takes the best over all answers; a model learns the place of the first.
    """
    try:
        articles = json.loads(_read(path))["data"]
        questions = [
            (question, [answer["text"] for answer in question["answers"]], paragraph["context"], str(title))
            for title, article in ((article.get("title", ""), article) for article in articles)
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        spans = [
            Span(
                question["question"],
                context,
                question["answers"][0]["answer_start"],
                answers[0],
                title,
                tuple(answer for answer in dict.fromkeys(answers) if answer != answers[0]),
            )
            for question, answers, context, title in questions
            if answers
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not in the format of SQuAD 1.1 ({error!r}); download the file again") from error
    for number, span in enumerate(spans, start=1):
        if not span.context.startswith(span.answer, span.start):
            raise InputError(f"{path}, question {number}: {span.answer!r} is not at {span.start} of its text")
    return spans, len(questions) - len(spans)


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}; give another file or --data_dir") from error


def _read(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}; give the directory of all tasks as --data_dir") from error


def decode(content: bytes, source: str) -> str:
    """Return what a file holds, without a byte order mark, or raise `InputError` with how to make it UTF-8."""
    if content.startswith(UTF16_MARKS):
        raise InputError(f"{source} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start + len(content) - len(error.object)  # the byte order mark counts
        line = content.count(b"\n", 0, position) + 1
        raise InputError(
            f"{source}, line {line}: byte {position} (0x{content[position]:02x}) is not UTF-8; if the file is CP949, "
            "as Korean spreadsheets write it, convert it with `iconv -f CP949 -t UTF-8`"
        ) from error
