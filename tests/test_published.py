"""The published score table: every verdict follows from the files by a rule, and is what they really hold."""

import csv
import random
import re
from pathlib import Path

import pytest

from kcelectra.errors import InputError
from kcelectra.finetuning.tasks import TASKS
from kcelectra.release.published import Cell, check_published, read_published, write_published

COMMITTED = Path(__file__).parents[1] / "kcelectra/release/published.csv"
V2022, V2021, BASE, LARGE = "KcELECTRA-base-v2022", "KcELECTRA-base", "KcBERT-Base", "KcBERT-Large"

# What was found by hand: verdict, best on test and its step, and more of the cell where it was looked up
FACTS = {
    (V2022, "nsmc", "accuracy"): ("ok", "91.966", 6000, {}),
    (V2022, "naver-ner", "f1"): ("ok", "87.354", 25000, {}),
    (V2022, "paws", "accuracy"): ("ok", "76.50", 17000, {"dev_selected": "75.65"}),
    (V2022, "kornli", "accuracy"): ("ok", "82.116", 3000, {"dev_selected": "81.96"}),
    (V2022, "korsts", "spearman"): ("wrong metric", "83.46", 1100, {"note": "the pearson of step 1100"}),
    (V2022, "question-pair", "accuracy"): ("ok", "95.119", 300, {"dev_selected": "94.99"}),
    (V2022, "korquad", "exact_match"): (
        "not in the files",
        "69.50",
        18000,
        {"last": "69.50", "note": "beside its published peer: 69.33 at step 12000, 69.50 at step 18000"},
    ),
    (V2022, "korquad", "f1"): ("ok", "90.40", 12000, {"last": "90.40"}),
    (V2021, "nsmc", "accuracy"): ("ok", "91.710", 14000, {}),
    (V2021, "naver-ner", "f1"): ("ok", "86.903", 25000, {}),
    (V2021, "paws", "accuracy"): (
        "wrong model",
        "76.55",
        15000,
        {
            "dev_selected": "76.55",
            "note": "kcelectra-base-v1 at step 14000, its best; KcELECTRA-base-50135-500k at step 13000",
        },
    ),
    (V2021, "kornli", "accuracy"): ("ok", "81.657", 9000, {"note": "cut, not rounded: 81.6567"}),
    (V2021, "korsts", "spearman"): ("ok", "82.653", 1200, {"dev_selected": "82.37"}),
    (V2021, "question-pair", "accuracy"): ("ok", "95.778", 400, {"dev_selected": "94.72", "last": "94.85"}),
    (V2021, "korquad", "exact_match"): ("ok", "70.610", 16000, {"note": "cut, not rounded: 70.6096"}),
    (V2021, "korquad", "f1"): ("ok", "90.41", 14000, {"note": "90.11 at step 16000, best by exact_match"}),
    (BASE, "nsmc", "accuracy"): ("ok", "89.62", 18000, {}),
    (BASE, "naver-ner", "f1"): ("ok", "84.34", 24000, {}),
    (BASE, "paws", "accuracy"): ("not the best", "67.00", 15000, {"note": "66.95 at step 19000, after the best"}),
    (BASE, "kornli", "accuracy"): ("ok", "74.85", 9000, {}),
    (BASE, "korsts", "spearman"): ("ok", "75.57", 600, {}),
    (BASE, "question-pair", "accuracy"): ("ok", "93.93", 300, {}),
    (BASE, "korquad", "exact_match"): (
        "ok",
        "60.27",
        24000,
        {"last": "60.25", "note": "60.25 at step 26000, the last"},
    ),
    (BASE, "korquad", "f1"): ("ok", "84.39", 26000, {"last": "84.39"}),
    (LARGE, "nsmc", "accuracy"): ("ok", "90.68", 18000, {}),
    (LARGE, "naver-ner", "f1"): ("ok", "85.53", 49000, {}),
    (LARGE, "paws", "accuracy"): ("stale", "70.60", 30000, {"note": "70.15 at step 29000, before the best"}),
    # The best came first, so that a table filled too early does not explain it
    (LARGE, "kornli", "accuracy"): ("not the best", "77.29", 24000, {"note": "76.99 at step 45000, after the best"}),
    (LARGE, "korsts", "spearman"): ("ok", "77.49", 1600, {}),
    (LARGE, "question-pair", "accuracy"): ("ok", "94.06", 800, {}),
    (LARGE, "korquad", "exact_match"): ("stale", "62.95", 50000, {"note": "62.16 at step 44000"}),
    (LARGE, "korquad", "f1"): ("stale", "87.20", 50000, {"note": "86.64 at step 44000"}),
}


@pytest.fixture
def reference(shared_data):
    path = shared_data.parent / "reference"
    if not (path / "kcelectra_sweep.csv").is_file():
        pytest.skip(f"no score files at {path}; the rules are tested without them")
    return path


def by_name(cells: list[Cell]) -> dict[tuple[str, str, str], Cell]:
    return {(cell.model, cell.task, cell.score): cell for cell in cells}


@pytest.fixture(scope="module")
def table():
    return by_name(read_published())


# the real table


@pytest.mark.parametrize("name", FACTS, ids=lambda name: "-".join(name))
def test_what_was_found_by_hand_comes_out(table, name):
    verdict, best, step, more = FACTS[name]
    cell = table[name]
    assert (cell.verdict, cell.best_step, cell.protocol) == (verdict, step, "kcbert-finetune")
    for field, expected in {"best_on_test": best, **more}.items():
        if field == "note":
            assert expected in cell.note
        else:
            assert f"{getattr(cell, field):.{len(expected.partition('.')[2])}f}" == expected, field


def test_corrected_the_newer_model_is_not_one_point_better(table):
    def gain(field: str, task: str, score: str = "accuracy") -> str:
        newer, older = (getattr(table[model, task, score], field) for model in (V2022, V2021))
        return f"{newer - older:+.2f}"

    expected = {"nsmc": "+0.26", "paws": "-0.05", "kornli": "+0.46", "question-pair": "-0.66"}
    assert {task: gain("best_on_test", task) for task in expected} == expected
    assert gain("best_on_test", "naver-ner", "f1") == "+0.45"
    assert gain("best_on_test", "korsts", "spearman") == "+0.81"
    assert gain("best_on_test", "korquad", "exact_match") == "-1.11"
    assert gain("best_on_test", "korquad", "f1") == "-0.00"
    assert (gain("published", "paws"), gain("published", "korsts", "spearman")) == ("+1.70", "+1.02")


def test_what_was_copied_has_no_files_and_other_protocols(table):
    copied = [cell for cell in table.values() if (cell.model, cell.task, cell.score) not in FACTS]
    assert len(copied) == 7 * 8 and len(table) == 11 * 8
    assert {cell.verdict for cell in copied} == {"no files"}
    assert {(cell.best_on_test, cell.best_step, cell.dev_selected, cell.dev_step, cell.last) for cell in copied} == {
        (None,) * 5
    }
    newer = {cell.model for cell in copied if cell.protocol == "koelectra-v3"}
    assert newer == {"KoELECTRA-Base-v3"}
    assert {cell.protocol for cell in copied if cell.model not in newer} == {"koelectra (before 2020-10)"}


def test_only_tasks_with_a_dev_split_beside_test_have_a_step_selected_on_dev(table):
    selected = {cell.task for cell in table.values() if cell.dev_selected is not None}
    assert selected == {"paws", "kornli", "korsts", "question-pair"}
    assert {cell.task for cell in table.values()} <= TASKS.keys()


def test_the_table_is_that_of_the_readme(table, reference):
    columns = {
        "nsmc_acc": ("nsmc", "accuracy"),
        "naver_ner_f1": ("naver-ner", "f1"),
        "paws_acc": ("paws", "accuracy"),
        "kornli_acc": ("kornli", "accuracy"),
        "korsts_spearman": ("korsts", "spearman"),
        "question_pair_acc": ("question-pair", "accuracy"),
        "korquad_dev_em": ("korquad", "exact_match"),
        "korquad_dev_f1": ("korquad", "f1"),
    }
    with open(reference / "published_scores.csv", encoding="utf-8") as file:
        published = {
            (row["model"], *name): float(row[column])
            for row in csv.DictReader(file)
            for column, name in columns.items()
        }
    assert {name: cell.published for name, cell in table.items()} == published


def test_the_committed_table_is_what_checking_the_real_files_writes(reference, tmp_path):
    cells = check_published(reference / "kcelectra_sweep.csv")
    assert cells == read_published()
    write_published(cells, tmp_path / "published.csv")
    assert (tmp_path / "published.csv").read_bytes() == COMMITTED.read_bytes()


# the rules, on files made up: KcBERT-Base is published with PAWS 66.95, KorSTS 75.57, KorQuAD 60.25 and 84.39

HEADER = "model,pretrain_step,task,metric,finetune_step,dev_score,test_score\n"
RUN = "kcbert-base"


def saved(task: str, metric: str, *scores: str, run: str = RUN, dev: tuple[str, ...] = ()) -> list[str]:
    """Steps 100, 200 and so on; those of KorQuAD are filed under dev, as it has no other split."""
    pairs = (
        [(score, "") for score in scores] if task == "korquad" else zip(dev or [""] * len(scores), scores, strict=True)
    )
    return [f"{run},,{task},{metric},{100 * step},{a},{b}\n" for step, (a, b) in enumerate(pairs, start=1)]


def write_sweep(directory: Path, lines: list[str], header: str = HEADER) -> Path:
    path = directory / "sweep.csv"
    path.write_text(header + "".join(lines), encoding="utf-8")
    return path


def check(directory: Path, lines: list[str], task: str, score: str) -> Cell:
    return by_name(check_published(write_sweep(directory, lines)))[BASE, task, score]


PAWS, EM, F1 = ("paws", "acc"), ("korquad", "official_exact_match"), ("korquad", "official_f1")
STS, PEARSON = ("korsts", "spearmanr"), ("korsts", "pearson")


@pytest.mark.parametrize(
    ("lines", "task", "score", "verdict", "note"),
    [
        (saved(*PAWS, "0.66", "0.66949", "0.65"), "paws", "accuracy", "ok", ""),
        (saved(*PAWS, "0.66", "0.669588"), "paws", "accuracy", "ok", "cut, not rounded: 66.9588"),
        (
            saved(*PAWS, "0.6695", "0.67"),
            "paws",
            "accuracy",
            "stale",
            "66.95 at step 100, before the best, 67.00 at .*",
        ),
        (saved(*PAWS, "0.67", "0.6695"), "paws", "accuracy", "not the best", "66.95 at step 200, after .* step 100"),
        # the last step of a task with one score is no excuse, the first of equals is the best
        (saved(*PAWS, "0.67", "0.67", "0.6695"), "paws", "accuracy", "not the best", ".* 67.00 at step 100"),
        (
            saved(*STS, "0.75", "0.753") + saved(*PEARSON, "0.74", "0.7557"),
            "korsts",
            "spearman",
            "wrong metric",
            "the pearson of step 200; the best spearman is 75.30 at step 200",
        ),
        (
            saved(*STS, "0.75", "0.753") + saved(*PEARSON, "0.7557", "0.74"),  # not of the best step
            "korsts",
            "spearman",
            "not in the files",
            "nearest: 75.30 at step 200",
        ),
        (
            saved(*PAWS, "0.6") + saved(*PAWS, "0.7", "0.6695", run="kcbert-large"),
            "paws",
            "accuracy",
            "not in the files",  # some step of another run is no evidence
            "nearest: 60.00 at step 100; elsewhere: kcbert-large at step 200",
        ),
        (
            saved(*PAWS, "0.6") + saved(*PAWS, "0.7", "0.6695", run="exkcbert") + saved(*PAWS, "0.6695", run="test"),
            "paws",
            "accuracy",
            "wrong model",
            "test at step 100, its best; exkcbert at step 200",
        ),
        (saved(*PAWS, "0.6695") + saved(*PAWS, "0.6695", run="test"), "paws", "accuracy", "ok", ""),
        (saved(*PAWS, "0.6", "0.7", "0.66"), "paws", "accuracy", "not in the files", "nearest: 66.00 at step 300"),
        # a dev score is none on test, a loss is no score, and a score is one of its own task
        (saved(*PAWS, "0.6", dev=("0.6695",)), "paws", "accuracy", "not in the files", "nearest: 60.00 at step 100"),
        (
            saved(*PAWS, "0.6") + saved("paws", "loss", "0.6695"),
            "paws",
            "accuracy",
            "not in the files",
            "nearest: 60.00 at step 100",
        ),
        (
            saved(*PAWS, "0.6") + saved("kornli", "acc", "0.6695", run="test"),
            "paws",
            "accuracy",
            "not in the files",
            "nearest: 60.00 at step 100",
        ),
        ([], "paws", "accuracy", "no files", "the file has no accuracy of kcbert-base"),
        # KorQuAD: both scores of one step
        (
            saved(*EM, "60.25", "60.3", "60.1") + saved(*F1, "84.39", "84", "84"),
            "korquad",
            "exact_match",
            "ok",
            ".* best by f1; .*",
        ),
        (
            saved(*EM, "60.3", "60.25") + saved(*F1, "85", "84.39"),
            "korquad",
            "exact_match",
            "ok",
            ".*step 200, the last; .*",
        ),
        (saved(*EM, "60.25", "60.3", "60") + saved(*F1, "84.39", "85", "84"), "korquad", "f1", "stale", ".*"),
        (saved(*EM, "60.3", "60.25") + saved(*F1, "84.39", "83"), "korquad", "exact_match", "not the best", ".*"),
        (
            saved(*EM, "60.1", "60.3") + saved(*F1, "84.39", "84.1"),
            "korquad",
            "exact_match",
            "not in the files",
            "nearest: 60.30 at step 200; beside its published peer: 60.10 at step 100",
        ),
        (saved(*EM, "60.3", "60.25"), "korquad", "exact_match", "not the best", ".*"),
        (
            saved(*EM, "60.3", "60.25") + saved(*F1, "85", "83") + saved(*F1, "85", "84.39", run="test"),
            "korquad",
            "exact_match",
            "not the best",  # the F1 of another run is no peer
            ".*",
        ),
    ],
)
def test_each_verdict_has_its_rule(tmp_path, lines, task, score, verdict, note):
    cell = check(tmp_path, lines, task, score)
    assert cell.verdict == verdict
    assert re.fullmatch(note, cell.note), cell.note


def test_the_step_chosen_on_dev_is_the_first_of_equals_and_scored_on_test(tmp_path):
    lines = saved(*PAWS, "0.61", "0.62", "0.63", "0.64", dev=("0.5", "0.7", "0.7", "0.6"))
    lines += [f"{RUN},,paws,acc,500,0.9,\n"]  # no score on test, so no step to report
    cell = check(tmp_path, lines, "paws", "accuracy")
    assert (cell.dev_selected, cell.dev_step) == (62.0, 200)
    assert (cell.best_on_test, cell.best_step, cell.last) == (64.0, 400, 64.0)


def test_no_step_of_korquad_is_selected_on_dev_which_is_what_is_reported(tmp_path):
    cell = check(tmp_path, saved(*EM, "60", "60.25", "59.87654"), "korquad", "exact_match")
    assert (cell.best_on_test, cell.best_step, cell.last) == (60.25, 200, 59.8765)
    assert (cell.dev_selected, cell.dev_step) == (None, None)


def test_the_order_of_the_rows_and_a_byte_order_mark_say_nothing(tmp_path):
    lines = saved(*PAWS, "0.67", "0.6695", "0.67") + saved(*EM, *["60"] * 11, "59") + saved(*F1, "84", "84.39")
    expected = check_published(write_sweep(tmp_path, lines))
    assert by_name(expected)[BASE, "korquad", "exact_match"].last == 59.0  # of step 1200, which as text is before 200
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        assert check_published(write_sweep(tmp_path, lines, f"\ufeff{HEADER}")) == expected


def test_a_table_survives_being_written(table, tmp_path):
    write_published(table.values(), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == COMMITTED.read_bytes()


# files that cannot be used


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("KcBERT-Base,,paws,acc,100,,0.6\n", "line 3: unknown model 'KcBERT-Base'; use one of KcELECTRA-base"),
        ("kcbert-base,,paws,acc,100,,high\n", "line 3: test_score is 'high', no number; mend the file"),
        ("kcbert-base,,paws,acc,100,nan,0.6\n", "line 3: dev_score is 'nan', no number"),
        ("kcbert-base,,paws,acc,100,inf,0.6\n", "line 3: dev_score is 'inf', no number"),
        ("kcbert-base,,paws,acc,,0.6,0.6\n", "line 3: finetune_step is '', no number"),
        ("kcbert-base,,paws,acc,1.5,0.6,0.6\n", "line 3: finetune_step is '1.5', no number"),
        ("kcbert-base,,paws,acc,100,0.6", "line 3: test_score is None, no number"),
        ("kcbert-base,,paws,acc,100,,66.95\n", r"line 3: 6695.00 %; give shares from 0 to 1, percent for KorQuAD"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path, row, message):
    with pytest.raises(InputError, match=f"sweep.csv, {message}"):
        check_published(write_sweep(tmp_path, [*saved(*PAWS, "0.6"), row]))


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(InputError, match="sweep.csv has no column 'finetune_step'; give a CSV with model, task"):
        check_published(write_sweep(tmp_path, [], HEADER.replace("finetune_step", "step")))
    with pytest.raises(InputError, match="sweep.csv has no column 'model'"):
        check_published(write_sweep(tmp_path, [], ""))
    with pytest.raises(InputError, match="cannot read .*nowhere.csv.*; give the CSV of all saved steps"):
        check_published(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(HEADER.encode() + b"\xff")
    with pytest.raises(InputError, match="cannot read .*bytes.csv"):
        check_published(tmp_path / "bytes.csv")
