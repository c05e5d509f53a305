"""The tasks, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: of the task.
        test_file: what it is measured on, below a directory of all tasks: its official test split; the dev split where
            no test labels were published.
        text_columns: one or two, by name; by number, from 0, where the file has no header.
        max_length: tokens of a row, special ones included. That of KcBERT-Finetune; the three comment tasks are not in
            it: theirs is the one of KoELECTRA for BEEP!, which they are much like (assumption).
    """

    name: str
    test_file: str
    text_columns: tuple[str | int, ...]
    max_length: int


TASKS = {
    task.name: task
    for task in (
        Task("nsmc", "nsmc/ratings_test.txt", ("document",), 50),
        Task("naver-ner", "naver_ner/test.tsv", (0,), 50),
        Task("paws", "paws/test_2k.tsv", ("sentence1", "sentence2"), 128),
        Task("kornli", "kornli/xnli.test.ko.tsv", ("sentence1", "sentence2"), 72),
        Task("korsts", "korsts/sts-test.tsv", ("sentence1", "sentence2"), 72),
        Task("question-pair", "question_pair/test.tsv", ("question1", "question2"), 72),
        Task("korquad", "korquad/KorQuAD_v1.0_dev.json", ("question", "context"), 512),
        Task("beep", "hate_speech/kocohub/labeled/dev.tsv", ("comments",), 128),
        Task("unsmile", "hate_speech/unsmile/unsmile_valid_v1.0.tsv", ("문장",), 128),
        Task("kmhas", "hate_speech/kmhas/kmhas_test.txt", ("document",), 128),
    )
}
