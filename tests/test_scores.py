"""Scores are grouped by contents, and a table says all that makes one of them less than it seems."""

import csv
import io
import json
import re

import numpy as np
import pytest
from score_rows import make_lines, make_reviews, make_row, make_runs, write_results

from kcelectra.errors import InputError
from kcelectra.finetuning.metrics import compute
from kcelectra.finetuning.tasks import TASKS
from kcelectra.release.predictions import pick_errors, read_predictions, score_classes, show
from kcelectra.release.scores import (
    Table,
    compare_models,
    read_groups,
    tabulate_column,
    tabulate_scores,
    to_csv,
    to_markdown,
)

OTHER = {"model": "out/other", "weights_sha256": "c" * 64}
HOSTILE = '<script>alert(1)</script> "q" | `x` *y* [z](javascript:0) \\ \u202eabc\n&lt; \ud800'


def cells_of(table: Table) -> dict[tuple[str, str], str]:
    return {(row[0], name): cell for row in table.rows for name, cell in zip(table.header[1:], row[1:], strict=True)}


def footnotes_of(table: Table, cell: str) -> list[str]:
    notes = dict(note.split(" ", 1) for note in table.notes)
    return [notes[mark] for mark in re.findall("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", cell)]


def read_table(tmp_path, runs) -> Table:
    return tabulate_scores(read_groups(write_results(tmp_path, runs)))


# groups


def test_a_model_is_its_weights_and_tokenizer_wherever_it_lies(tmp_path):
    runs = make_runs([15, 16])
    runs[1][0]["model"] = "/elsewhere/copy"
    (group,) = read_groups(write_results(tmp_path, runs))
    assert (group.model, [row["seed"] for row in group.rows]) == ("out/base", [0, 1])


def test_a_number_of_epochs_is_one_whether_whole_or_not(tmp_path):
    runs = make_runs([15, 16])
    runs[1][0]["settings"] = {**runs[1][0]["settings"], "num_epochs": float(runs[0][0]["settings"]["num_epochs"])}
    (group,) = read_groups(write_results(tmp_path, runs))
    assert [row["seed"] for row in group.rows] == [0, 1]


@pytest.mark.parametrize("key", ["weights_sha256", "tokenizer_sha256"])
def test_two_models_of_one_name_are_told_apart(tmp_path, key):
    groups = read_groups(write_results(tmp_path, [*make_runs([15]), *make_runs([16], **{key: "c" * 64})]))
    assert len({group.model for group in groups}) == 2
    assert all(re.fullmatch("out/base #[0-9a-f]{6}", group.model) for group in groups)


def test_a_label_is_name_revision_and_step(tmp_path):
    (group,) = read_groups(write_results(tmp_path, make_runs([15], model="a/b", revision="v1", step=1000)))
    assert group.model == "a/b@v1, step 1000"


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"num_epochs": 1}},
        {"num_examples": {"train": 5, "dev": 10, "test": 20}},
        {"data_sha256": {"train": "x", "dev": "d", "test": "t"}},
        {"labels": ["a", "b"]},
        {"columns": ["other"]},
        {"protocol": "kcbert-finetune", "selected_on": "test"},
    ],
)
def test_what_differs_in_protocol_settings_or_data_shares_no_cell_and_is_not_compared(tmp_path, changes):
    groups = read_groups(write_results(tmp_path, [*make_runs([15]), *make_runs([16], **changes)]))
    table = tabulate_scores(groups)
    assert len(table.header) == 3 and len(table.rows) == 1 and all(table.rows[0])
    groups = read_groups(write_results(tmp_path, [*make_runs([15]), *make_runs([16], **OTHER, **changes)]))
    assert len(groups) == 2 and compare_models(groups) == []


def test_a_seed_that_is_there_twice_counts_once_and_is_named(tmp_path):
    runs = make_runs([15, 16])
    table = read_table(tmp_path, [*runs, *runs])
    assert "77.50 " in table.rows[0][1] and "(2)" in table.rows[0][1]
    assert "2 more rows of the same seeds are left out" in footnotes_of(table, table.rows[0][1])


def test_tasks_come_in_their_order_and_models_in_that_of_the_file(tmp_path):
    lines = make_lines([0.5, 1.0, 2.0], [1.0, 2.0, 3.0])
    runs = [(make_row("korsts", 0, lines, **OTHER), lines), *make_runs([15]), *make_runs([15], **OTHER)]
    table = read_table(tmp_path, runs)
    assert table.header == ["model", "nsmc accuracy, strict", "korsts spearman, strict"]
    assert [row[0] for row in table.rows] == ["out/other", "out/base"]
    assert table.rows[1][2] == ""


# tables


def test_a_cell_is_mean_deviation_interval_and_seeds(tmp_path):
    table = read_table(tmp_path, make_runs([13, 15, 16, 16, 19]))
    scores = 100 * np.array([13, 15, 16, 16, 19]) / 20
    mean, deviation, low, high = map(float, re.findall(r"[\d.]+", table.rows[0][1])[:4])
    assert (mean, deviation) == (round(scores.mean(), 2), round(scores.std(ddof=1), 2))
    assert low < mean < high and table.rows[0][1].endswith(f"[{low:.2f}, {high:.2f}] (5)")


def test_collapsed_runs_count_and_the_footnote_has_the_mean_without(tmp_path):
    runs = make_runs([14, 16, 18, 12])
    lines = make_lines([1] * 20, [number % 2 for number in range(20)])
    runs.append((make_row("nsmc", 4, lines, predictions="4.jsonl"), lines))
    table = read_table(tmp_path, runs)
    assert table.rows[0][1].startswith("70.00 ±")
    (note,) = footnotes_of(table, table.rows[0][1])
    assert note == "collapsed, every prediction the same: 1 of 5 runs, which count; without them 75.00"
    assert "0 1 2 3 4†" in tabulate_column(read_groups(tmp_path / "results.jsonl")).rows[0]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"selected_on": "test"}, "selected on test: the step was chosen by the very score that is reported"),
        ({"notes": ["not the official files: train"]}, "not the official files: train"),
        ({"notes": ["only the first 300 of 135,000 of train"]}, "only the first 300 of 135,000 of train"),
        (
            {"settings": {"num_epochs": 3, "warmup": 0.1, "layer_decay": 0.8}},
            "num_epochs 3 (8), layer_decay 0.8 (None)",
        ),
        ({"predictions": None}, "the interval is over seeds alone"),
    ],
)
def test_what_makes_a_score_less_than_it_seems_is_a_footnote(tmp_path, changes, note):
    runs = make_runs([15] * 5, **changes)
    table = read_table(tmp_path, [(row, lines if row["predictions"] else None) for row, lines in runs])
    (found,) = footnotes_of(table, table.rows[0][1])
    assert found.endswith(note)


def test_fewer_than_five_seeds_is_a_footnote_and_five_is_not(tmp_path):
    for num_seeds, notes in ((4, ["fewer than 5 seeds"]), (5, [])):
        table = read_table(tmp_path, make_runs([15] * num_seeds))
        assert footnotes_of(table, table.rows[0][1]) == notes
    table = read_table(tmp_path, [(row, None) for row, _ in make_runs([15], predictions=None)])
    assert table.rows[0][1].startswith("75.00 (1)")
    assert footnotes_of(table, table.rows[0][1])[-1] == "no interval: one seed, and no predictions"


def test_a_column_shows_every_score_at_the_chosen_step_the_last_and_on_dev(tmp_path):
    tags = [["PER-B", "O"], ["O", "LOC-B"]]
    lines = make_lines([["PER-B", "O"], ["O", "O"]], tags, [["철수", "가"], ["이", "서울"]])
    last = compute("entity_f1", tags, tags)
    row = make_row("naver-ner", 0, lines, last_metrics=last, dev_metrics=None, settings={"num_epochs": 2})
    table = tabulate_column(read_groups(write_results(tmp_path, [(row, lines)])))
    rows = {cells[1]: cells[2:5] for cells in table.rows}
    assert rows["f1"] == ["66.67", "100.00", ""] and rows["recall"] == ["50.00", "100.00", ""]
    assert rows["num_gold"] == ["2", "2", ""]  # a count, no share
    assert table.rows[0][5:] == ["0", "20/30", "2"]
    assert "num_epochs: 2" in table.notes[1] and "train examples: 80" in table.notes[1]


def test_the_share_of_the_most_frequent_label_stands_by(tmp_path):
    table = tabulate_column(read_groups(write_results(tmp_path, make_runs([15], majority_share=0.5))))
    assert table.notes[-1].endswith("the most frequent label alone: 50.00")


# comparison


def test_models_are_compared_with_the_baseline_over_the_seeds_that_both_have(tmp_path):
    runs = [*make_runs([12, 14, 13]), *make_runs([15, 15, 17, 20], **OTHER)]
    groups = read_groups(write_results(tmp_path, runs))
    (table,) = compare_models(groups)
    task, model, difference, interval, over, p_value, seeds = table.rows[0]
    assert (task, model, table.title) == ("nsmc accuracy, strict", "out/other", "Difference from out/base")
    assert (difference, over, seeds) == (
        f"{100 * (np.mean([15, 15, 17]) - 13) / 20:+.2f}",
        "seeds and examples",
        "0 1 2",
    )
    low, high = json.loads(interval)
    assert low < float(difference) < high and 0 < float(p_value) < 0.2
    (table,) = compare_models(groups, "out/other")
    assert table.rows[0][1:3] == ["out/base", difference.replace("+", "-")]


def test_an_unknown_baseline_is_refused_with_those_there_are(tmp_path):
    groups = read_groups(write_results(tmp_path, [*make_runs([12]), *make_runs([15], **OTHER)]))
    with pytest.raises(InputError, match="no model 'x' in the results; give --baseline one of out/base, out/other"):
        compare_models(groups, "x")


def test_models_without_a_seed_in_common_are_not_compared_and_it_says_so(tmp_path):
    runs = make_runs([12], **OTHER)
    runs[0][0]["seed"] = 7
    (table,) = compare_models(read_groups(write_results(tmp_path, [*make_runs([12]), *runs])))
    assert table.rows[0][2] == "no seed in common"


# Markdown and CSV


def test_nothing_in_a_name_is_markup_in_markdown(tmp_path):
    table = read_table(tmp_path, make_runs([15], model=HOSTILE, notes=[HOSTILE]))
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines] == [3, 3, 3]
    for markup in ("<", "`", "*", "|"):
        assert not re.search(rf"(?<!\\){re.escape(markup)}", text.replace("| ", "").replace(" |", "")), markup
    assert "](" not in text and "\u202e" not in text and r"\\u202eabc\\n\&lt; \\ud800" in text


def test_the_csv_holds_every_score_as_a_share_and_reads_back(tmp_path):
    runs = [*make_runs([13, 15, 20], model='a, "b"\nc'), *make_runs([15], **OTHER)]
    lines = make_lines([[1.0, -1.0] + [-1.0] * 8, [-1.0] * 10], [[1] + [0] * 9, [0, 1] + [0] * 8])
    runs.append((make_row("unsmile", 0, lines), lines))
    groups = read_groups(write_results(tmp_path, runs))
    rows = list(csv.DictReader(io.StringIO(to_csv(groups))))
    assert [(row["label"], row["task"], row["score"]) for row in rows] == [
        (r'a, "b"\nc', "nsmc", "accuracy"),
        ("out/other", "nsmc", "accuracy"),
        *((r'a, "b"\nc', "unsmile", score) for score in ("micro_f1", "macro_f1", "lrap", "exact_match")),
    ]
    scores = np.array([13, 15, 20]) / 20
    assert (float(rows[0]["mean"]), float(rows[0]["sd"])) == (scores.mean(), scores.std(ddof=1))
    assert (float(rows[0]["low"]), float(rows[0]["high"])) == (groups[0].summary.low, groups[0].summary.high)
    assert json.loads(rows[0]["seeds"]) == [0, 1, 2] and json.loads(rows[0]["settings"]) == runs[0][0]["settings"]
    assert json.loads(rows[2]["labels"]) == list(TASKS["unsmile"].labels)
    assert rows[1]["sd"] == rows[2]["low"] == "" and rows[4]["low"] != ""


# rows that are none


def test_a_row_of_an_earlier_version_is_completed_from_its_task(tmp_path):
    runs = make_runs([15])
    for key in ("metric", "selected_by", "labels", "predictions", "columns"):
        del runs[0][0][key]
    (group,) = read_groups(write_results(tmp_path, [(runs[0][0], None)]))
    assert (group.column, group.first["labels"]) == ("nsmc accuracy, strict", ["0", "1"])
    assert re.fullmatch(
        "the row names none; take it out of .*results.jsonl and fine-tune again", group.first["problem"]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no row; run recipes/finetune.py --output_dir"),
        ("nonsense\n", "line 1 is no row"),
        ("7\n", "line 1 is no row: 7; take the line out"),
        ('{"task": "nsmc"}\n', "line 1: the row has no best_step, collapsed, .*weights_sha256; take the line out"),
        ('{"task": "mine"}\n', "line 1: the row has no .*labels, .*metric, .*; take the line out and fine-tune again"),
    ],
)
def test_a_file_without_whole_rows_is_refused_and_the_line_named(tmp_path, line, message):
    (tmp_path / "results.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"results.jsonl.*{message}"):
        read_groups(tmp_path / "results.jsonl")


def test_a_row_without_the_score_it_was_chosen_by_is_refused(tmp_path):
    runs = [*make_runs([15]), *make_runs([15], metrics={"f1": 0.5})]
    with pytest.raises(InputError, match="line 2: the row has no accuracy in metrics; take the line out"):
        read_groups(write_results(tmp_path, runs))


def test_rows_that_cannot_be_put_together_are_named(tmp_path):
    runs = make_runs([3, 4])
    runs[1][0]["metrics"] = {**runs[1][0]["metrics"], "f1": 0.5}
    with pytest.raises(InputError, match=r"rows of out/base, .* \(seed 0: accuracy; seed 1: accuracy, f1\); "):
        read_groups(write_results(tmp_path, runs))
    with pytest.raises(InputError, match="line 1: the row has no number of seconds; take the line out"):
        read_groups(write_results(tmp_path, make_runs([3], seconds=None)))


def test_a_results_file_that_is_not_there_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(
        InputError, match="no results file .*nowhere/r.jsonl; give another --results, or make it: python"
    ):
        read_groups(tmp_path / "nowhere/r.jsonl")


# predictions


def test_predictions_that_are_missing_or_of_another_run_are_said_to_be(tmp_path):
    lines, others = make_reviews(15), make_reviews(16)
    row = make_row("nsmc", 0, lines)
    path = write_results(tmp_path, [(row, lines)])
    assert read_predictions(row, path) == (lines, "")
    for found in (others, make_lines([["O"]], [["O"]]), make_lines([1], [1])):
        write_results(tmp_path, [(row, found)])
        kept, problem = read_predictions(row, path)
        assert not kept and "gives other scores than the row, a later run wrote over it; fine-tune again" in problem
    (tmp_path / row["predictions"]).unlink()
    assert re.match("there is no .*nsmc-0/predictions.jsonl; copy it", read_predictions(row, path)[1])


@pytest.mark.parametrize("line", ["nonsense", "7", '{"gold": 1}'])
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    row = make_row("nsmc", 0, make_reviews(15))
    path = write_results(tmp_path, [(row, make_reviews(15))])
    (tmp_path / row["predictions"]).write_text(f'{{"prediction": 1, "gold": 1}}\n{line}\n')
    with pytest.raises(InputError, match="predictions.jsonl, line 2 is no prediction .*; take the file away"):
        read_predictions(row, path)


def f1_of(predicted: np.ndarray, gold: np.ndarray) -> float:
    return 2 * (predicted & gold).sum() / (predicted.sum() + gold.sum())


def test_the_f1_of_a_class_is_counted_by_hand():
    golds, predictions = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])
    lines = make_lines(predictions.tolist(), golds.tolist())
    scores = score_classes(make_row("beep", 0, lines), lines)
    for number, name in enumerate(("none", "offensive", "hate")):
        expected = f1_of(predictions == number, golds == number), (golds == number).sum()
        assert scores[name] == pytest.approx(expected)
    logits, flags = np.array([[2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]]), np.array([[1, 1], [0, 0], [1, 1]])
    lines = make_lines(logits.tolist(), flags.tolist())
    scores = score_classes({"metric": "multi_label", "labels": ["가", "나"]}, lines)
    assert scores == {"가": pytest.approx((0.5, 2)), "나": pytest.approx((2 / 3, 2))}


def test_the_f1_of_a_type_is_over_its_whole_entities():
    golds = [["PER-B", "PER-I", "O"], ["LOC-B", "O", "PER-B"]]
    predictions = [["PER-B", "PER-I", "O"], ["LOC-B", "LOC-I", "DAT-B"]]
    lines = make_lines(predictions, golds)
    assert score_classes(make_row("naver-ner", 0, lines), lines) == {
        "DAT": (0.0, 0),
        "LOC": (0.0, 1),
        "PER": (pytest.approx(2 / 3), 2),
    }
    nothing = make_lines([["O"]], [["O"]])
    assert score_classes(make_row("naver-ner", 0, nothing), nothing) == {}
    assert score_classes({"metric": "answer_match", "labels": None}, make_lines(["a"], [["a"]])) == {}


def test_errors_are_spread_evenly_over_all_there_are():
    lines = make_reviews(0, num=91)
    rows, num_errors = pick_errors(make_row("nsmc", 0, lines), lines)
    assert num_errors == 91 and [row[0] for row in rows] == [f"text {number}" for number in range(0, 91, 10)]
    assert rows[0] == ["text 0", "0", "1"]
    lines = make_reviews(18)
    assert [row[0] for row in pick_errors(make_row("nsmc", 0, lines), lines)[0]] == ["text 18", "text 19"]
    lines = make_reviews(20)
    assert pick_errors(make_row("nsmc", 0, lines), lines) == ([], 0)


@pytest.mark.parametrize(
    ("task", "predictions", "golds", "expected"),
    [
        ("korsts", [1.0, 3.0, 5.0], [1.5, 0.0, 4.0], [["t1 / u1", "0.00", "3.00"], ["t2 / u2", "4.00", "5.00"]]),
        ("korquad", ["서울", "부산", ""], [["서울시"], ["대구", "광주"], ["a"]], [["t1 / u1", "대구 / 광주", "부산"]]),
        (
            "naver-ner",
            [["O", "O"], ["PER-B", "O"], ["O", "LOC-B"]],
            [["O", "O"], ["O", "O"], ["O", "PER-B"]],
            [["t1 u1", "(none)", "t1/PER-B"], ["t2 u2", "u2/PER-B", "u2/LOC-B"]],
        ),
        (
            "unsmile",
            [[-1.0] * 10, [1.0, 1.0] + [-1.0] * 8, [-1.0] * 9 + [1.0]],
            [[0] * 10, [0] * 10, [1] + [0] * 9],
            [["t1 / u1", "(none)", "여성/가족, 남성"], ["t2 / u2", "여성/가족", "clean"]],
        ),
    ],
)
def test_an_error_shows_text_gold_and_prediction_by_name(task, predictions, golds, expected):
    lines = make_lines(predictions, golds, [[f"t{number}", f"u{number}"] for number in range(3)])
    assert pick_errors(make_row(task, 0, lines), lines, num_errors=2)[0][: len(expected)] == expected


def test_a_text_that_is_long_is_cut_and_one_that_is_missing_is_said_to_be():
    lines = make_lines([0, 0], [1, 1], [["가" * 201], ["나" * 200]])
    rows, _ = pick_errors(make_row("nsmc", 0, lines), lines)
    assert [row[0] for row in rows] == ["가" * 199 + "…", "나" * 200]
    del lines[0]["text"]
    assert pick_errors(make_row("nsmc", 0, lines), lines)[0][0][0] == "(not in the file)"


def test_what_cannot_be_seen_is_spelt_out_and_emoji_are_left_alone():
    assert show("a\u202eb\nc\x00\ufeff\ud800") == r"a\u202eb\nc\x00\ufeff\ud800"
    assert show("👩\u200d💻 ❤\ufe0f 가") == "👩\u200d💻 ❤\ufe0f 가"


@pytest.mark.parametrize(
    ("model", "step", "family"),
    [
        ("out/checkpoint-1000", 1000, "out/checkpoint-N, step N"),
        ("base-50135-100k", 100_000, "base-50135-Nk, step N"),
        ("out/11000", 1000, "out/11000, step N"),
        ("out/base", None, "out/base"),
    ],
)
def test_checkpoints_of_one_run_have_a_name_in_common(tmp_path, model, step, family):
    (group,) = read_groups(write_results(tmp_path, make_runs([15], model=model, step=step)))
    assert group.family == family.replace("Nk", "N")


def test_the_last_checkpoint_is_of_its_run_though_it_has_the_weights_of_the_export(tmp_path):
    few = {"num_examples": {"train": 8, "dev": 1, "test": 20}}
    runs = make_runs([15], model="out/run/export")
    runs += make_runs([14], model="out/run/checkpoint-300", step=300, **few)
    runs += make_runs([13], model="out/run/checkpoint-200", step=200, weights_sha256="c" * 64, **few)
    whole, last, before = read_groups(write_results(tmp_path, runs))
    assert whole.model == last.model
    assert whole.family != last.family == before.family
