"""The files of the tasks, as their publishers have them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import Span, read_examples, read_rows, read_spans, read_splits
from kcelectra.finetuning.tasks import TASKS, Task

NUM_ROWS = {
    "nsmc": 50_000,
    "naver-ner": 9_000,
    "paws": 2_000,
    "kornli": 5_010,
    "korsts": 1_379,
    "question-pair": 758,
    "korquad": 5_774,
    "beep": 471,
    "unsmile": 3_737,
    "kmhas": 21_939,
}


def write_task(directory: Path, data: bytes, name: str = "task.tsv", columns: tuple = ("text",)) -> Task:
    (directory / name).write_bytes(data)
    return replace(TASKS["nsmc"], name="mine", directory=".", files={"test": (name,)}, text_columns=columns)


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_a_published_file_is_read(shared_data, name):
    rows = read_rows(TASKS[name], shared_data)
    assert len(rows) == NUM_ROWS[name]
    assert {len(row) for row in rows} == {2 if len(TASKS[name].text_columns) == 2 else 1}
    assert sum(not text for row in rows for text in row) <= 3  # NSMC has three empty reviews


def test_quotation_marks_are_text(tmp_path):
    task = write_task(tmp_path, 'id\ttext\n1\t"""아""" 좋다\n2\t"열고\n'.encode())
    assert read_rows(task, tmp_path) == [('"""아""" 좋다',), ('"열고',)]


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path):
    task = write_task(tmp_path, "\ufefftext\tlabel\r\n좋다\t1\r\n싫다\t0".encode())
    assert read_rows(task, tmp_path) == [("좋다",), ("싫다",)]


def test_a_file_without_a_header_is_read_by_number(tmp_path):
    task = write_task(tmp_path, "가 나\tO O\n다\tO\n".encode(), columns=(0,))
    assert read_rows(task, tmp_path) == [("가 나",), ("다",)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("id\tdocument\n1\t가\n".encode(), "has no column 'text'; it has 'id', 'document'"),
        (
            b"text\tother\n" + "가\t나\n".encode("cp949"),
            "task.tsv, line 2: byte 11 .*is not UTF-8; if the file is CP949.* `iconv -f CP949 -t UTF-8`",
        ),
        ("other\ttext\n나\t가\n다\n".encode(), "task.tsv, line 3: 1 columns; download the file again"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read_rows(write_task(tmp_path, data), tmp_path)


def squad(context: str, start: int, answer: str) -> bytes:
    question = {
        "question": "누구?",
        "answers": [{"answer_start": start, "text": answer}, {"answer_start": 0, "text": "x"}],
    }
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}).encode()


def test_a_question_has_its_first_answer_and_what_else_is_right(tmp_path):
    task = write_task(tmp_path, squad("그는 세종대왕이다", 3, "세종대왕"), "squad.json")
    task = replace(task, head="spans")
    assert read_spans(task, tmp_path) == [Span("누구?", "그는 세종대왕이다", 3, "세종대왕", others=("x",))]
    assert read_rows(task, tmp_path) == [("누구?", "그는 세종대왕이다")]


def test_questions_without_an_answer_are_counted(tmp_path):
    for split, name in (("train", "KorQuAD_v1.0_train.json"), ("dev", "KorQuAD_v1.0_dev.json")):
        data = json.loads(squad(f"그는 세종대왕이다 {split}", 3, "세종대왕"))
        data["data"][0]["paragraphs"][0]["qas"] += [{"question": "언제?", "answers": []}] * (split == "dev")
        (tmp_path / name).write_text(json.dumps(data))
    splits = read_splits(TASKS["korquad"], tmp_path, carves=False)
    assert (len(splits.train), len(splits.test)) == (1, 1)
    assert splits.notes[-1] == "left out of test: 1 questions without an answer"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (squad("그는 세종대왕이다", 4, "세종대왕"), "question 1: '세종대왕' is not at 4 of its text"),
        (b"{", "not in the format of SQuAD 1.1"),
        (b"[]", "not in the format of SQuAD 1.1"),
        (b'{"data": [{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]}', "not in the format of SQuAD 1.1"),
    ],
)
def test_questions_that_are_wrong_are_named(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read_spans(write_task(tmp_path, data, "squad.json"), tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*ratings_test.txt.*--data_dir"):
        read_rows(TASKS["nsmc"], tmp_path)


# examples and splits


def write_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("nsmc", "id\tdocument\tlabel\n1\t좋다\t2\n", "line 2: the label is '2', not one of 0, 1; mend the file"),
        ("nsmc", "id\tdocument\tlabel\n1\t좋다\t\n", "line 2: the label is '', not one of 0, 1"),
        ("korsts", "sentence1\tsentence2\tscore\n가\t나\t-\n", "line 2: the label '-' is no number"),
        ("beep", "comments\thate\n가\tHate\n", "the label is 'Hate', not one of none, offensive, hate"),
        ("kmhas", "document\tlabel\n가\t1,9\n", "the labels '1,9' are not numbers from 0 to 8"),
        ("naver-ner", "가 나\tO\n", "line 1: 2 words and 1 tags"),
        ("naver-ner", "가\tB-PER\n", "line 1: the tag 'B-PER' is not one of O, PER-B"),
    ],
)
def test_a_bad_label_is_named_with_its_line(tmp_path, task, text, message):
    with pytest.raises(InputError, match=message):
        list(read_examples(TASKS[task], write_file(tmp_path / "file.tsv", text)))


def test_labels_become_ids_numbers_and_flags(tmp_path):
    for task, text, labels in (
        ("beep", "comments\thate\n가\thate\n나\tnone\n", [2, 0]),
        ("korsts", "sentence1\tsentence2\tscore\n가\t나\t2.5\n", [2.5]),
        ("kmhas", "document\tlabel\n가\t0,3\n나\t8\n", [(1, 0, 0, 1, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 0, 1)]),
    ):
        path = write_file(tmp_path / f"{task}.tsv", text)
        assert [example.label for example in read_examples(TASKS[task], path)] == labels


def test_an_empty_text_is_kept_and_a_pair_with_one_is_left_out(tmp_path):
    alone = write_file(tmp_path / "alone.tsv", "id\tdocument\tlabel\n1\t\t0\n2\t가\t1\n")
    pairs = write_file(tmp_path / "pairs.tsv", "sentence1\tsentence2\tlabel\n가\t\t0\n가\t나\t1\n")
    assert len(list(read_examples(TASKS["nsmc"], alone))) == 2
    assert len(list(read_examples(TASKS["paws"], pairs))) == 1


def write_nsmc(directory: Path, num_train: int = 300) -> Path:
    rows = "".join(f"{number}\t리뷰 {number // 3}\t{number % 2}\n" for number in range(num_train))
    write_file(directory / "ratings_train.txt", f"id\tdocument\tlabel\n{rows}")
    write_file(directory / "ratings_test.txt", "id\tdocument\tlabel\n1\t리뷰\t1\n")
    return directory


def test_dev_is_carved_from_train_by_text_alone(tmp_path):
    splits = read_splits(TASKS["nsmc"], write_nsmc(tmp_path / "one"))
    assert len(splits.train) + len(splits.dev) == 300 and 10 < len(splits.dev) < 60
    assert not {example.texts for example in splits.train} & {example.texts for example in splits.dev}
    longer = read_splits(TASKS["nsmc"], write_nsmc(tmp_path / "two", 900))
    assert set(splits.dev) <= set(longer.dev) and not set(splits.train) & set(longer.dev)
    assert any("dev: 1 in 10 of train, by a hash of the text" in note for note in splits.notes)


def test_questions_are_carved_by_article(shared_data):
    task = TASKS["korquad"]
    file = shared_data / "korquad/resplit/train.json"
    splits = read_splits(task, shared_data, files={"train": file, "dev": file})
    assert not {span.article for span in splits.train} & {span.article for span in splits.dev}
    assert len(splits.dev) > 50 and any("by a hash of the article" in note for note in splits.notes)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"kmhas"}))
def test_the_splits_of_every_task_are_found_below_one_directory(shared_data, task):
    splits = read_splits(TASKS[task], shared_data)
    assert min(map(len, splits[:3])) > 0
    is_resplit = task in ("naver-ner", "paws", "kornli", "korquad")
    assert any(note.startswith("not the official files: train") for note in splits.notes) == is_resplit
    if not is_resplit:
        own = read_splits(TASKS[task], shared_data / TASKS[task].directory)
        assert own.files == splits.files


def test_a_split_that_cannot_be_had_is_named_and_another_file_can_be_given(shared_data):
    with pytest.raises(InputError, match="kmhas: no kmhas_train.txt in .*; download it from .* --train_file"):
        read_splits(TASKS["kmhas"], shared_data)
    valid = shared_data / "hate_speech/kmhas/kmhas_valid.txt"
    splits = read_splits(TASKS["kmhas"], shared_data, files={"train": valid})
    assert len(splits.train) + len(splits.dev) == 8_776 and len(splits.test) == 21_939


def test_beside_a_training_file_that_is_given_the_official_dev_and_test_are_read(tmp_path):
    row = "sentence1\tsentence2\tlabel\n가\t나\t1\n{}\t라\t0\n"
    for name in ("dev_2k.tsv", "test_2k.tsv", *(f"resplit/{split}.tsv" for split in ("train", "dev", "test"))):
        write_file(tmp_path / "paws" / name, row.format(name))
    mine = write_file(tmp_path / "mine.tsv", row.format("mine"))
    for files, texts in (({}, "resplit/{}.tsv"), ({"train": mine}, "{}_2k.tsv")):
        splits = read_splits(TASKS["paws"], tmp_path, files=files)
        assert [part[1].texts[0] for part in splits[1:3]] == [texts.format(split) for split in ("dev", "test")]
    assert splits.train[1].texts[0] == "mine"


def test_learning_from_the_test_file_is_refused(tmp_path):
    directory = write_nsmc(tmp_path)
    with pytest.raises(InputError, match="is train and test; a score on what was learnt says nothing"):
        read_splits(TASKS["nsmc"], directory, files={"test": directory / "ratings_train.txt"})


def test_a_split_without_rows_is_named(tmp_path):
    directory = write_nsmc(tmp_path)
    write_file(directory / "ratings_test.txt", "id\tdocument\tlabel")
    with pytest.raises(InputError, match="nsmc: the test split is empty; look at .*ratings_test.txt"):
        read_splits(TASKS["nsmc"], directory)


def test_a_given_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*nowhere.tsv"):
        read_splits(TASKS["nsmc"], write_nsmc(tmp_path), files={"dev": tmp_path / "nowhere.tsv"})
