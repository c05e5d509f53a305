"""The report of fine-tuning opens offline, shows what hostile texts hold as text, and says what is missing."""

import base64
import importlib.util
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.image import imread
from score_rows import make_lines, make_row, make_runs, write_results

from kcelectra.errors import InputError
from kcelectra.release import score_report
from kcelectra.release.published import read_published
from kcelectra.release.score_plots import draw_classes, draw_confusions, draw_curves, draw_steps, name_for_drawing
from kcelectra.release.score_report import describe_published, write_score_report
from kcelectra.release.scores import read_groups

ROOT = Path(__file__).parents[1]
VOID = {"meta", "img"}
OTHER = {"model": "out/other", "weights_sha256": "c" * 64}
HOSTILE = "<script>alert('1')</script> & \"q\" | \u202eabc\nd"
SHOWN = "<script>alert('1')</script> & \"q\" | \\u202eabc\\nd"


class Page(HTMLParser):
    """Elements, texts and cells of a page; every element must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(" ".join(data.split()))

    def pictures(self) -> dict[str, bytes]:
        images = [attributes for tag, attributes in self.elements if tag == "img"]
        prefix = "data:image/png;base64,"
        return {one["alt"]: base64.b64decode(one["src"].removeprefix(prefix), validate=True) for one in images}


def make_every_kind(**changes) -> list[tuple[dict, list[dict]]]:
    """Return two seeds of a task of each kind."""
    logits, flags = np.where(np.eye(10) > 0, 2.0, -2.0), np.eye(10, dtype=int)
    kinds = {
        "nsmc": ([0, 1, 1, 0], [0, 1, 0, 0]),
        "naver-ner": ([["PER-B", "O"], ["O", "O"]], [["PER-B", "O"], ["O", "LOC-B"]]),
        "korsts": ([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]),
        "korquad": (["서울", "<b>부산</b>"], [["서울"], ["대구"]]),
        "unsmile": (logits[::-1].tolist(), flags.tolist()),
    }
    runs = []
    for task, (predictions, golds) in kinds.items():
        lines = make_lines(predictions, golds, [[f"{HOSTILE} {number}", "가나"] for number in range(len(golds))])
        for seed in (0, 1):
            where = f"{changes.get('weights_sha256', 'base')[:4]}-{task}-{seed}.jsonl"
            runs.append((make_row(task, seed, lines, **{"predictions": where, **changes}), lines))
    return runs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    hostile = {"model": HOSTILE, "notes": [HOSTILE]}
    results = write_results(directory, [*make_every_kind(**hostile), *make_every_kind(**OTHER)])
    return write_score_report(directory / "report", results), directory / "report"


@pytest.fixture(scope="module")
def page(written):
    return Page(written[0].page)


# the page


def test_the_page_needs_no_network_no_other_file_and_no_script(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "script", "iframe", "object", "embed", "base", "video", "audio", "form", "a"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action", "background", "style"):
            assert (attributes.get(name) or "data:image/png;").startswith("data:image/png;")
    (style,) = [text for text in page.texts if "font:" in text]
    assert "url(" not in style and "@import" not in style


def test_what_is_hostile_is_shown_as_text(page, written):
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b"})
    assert SHOWN in page.texts  # the model
    assert f"{SHOWN} 2 / 가나" in page.texts  # an error
    assert "<b>부산</b>" in page.texts
    for path in (written[0].page, written[1] / "scores.md", written[1] / "scores.csv"):
        assert "\u202e" not in path.read_text(encoding="utf-8")
    assert "<script>" not in (written[1] / "scores.md").read_text(encoding="utf-8").replace(r"\<", "")


def test_the_report_is_these_files_and_its_pictures_are_in_the_page(page, written):
    pictures = page.pictures()
    for name, data in pictures.items():
        assert data == (written[1] / f"{name}.png").read_bytes() and imread(written[1] / f"{name}.png").size
    kinds = [f"{kind}-{column}-{model}" for kind, column in (("confusions", 1), ("classes", 1)) for model in (1, 2)]
    kinds += [f"classes-{column}-{model}" for column in (2, 5) for model in (1, 2)]
    assert pictures.keys() == {*kinds, *(f"curves-{column}" for column in range(1, 6))}
    names = {path.name for path in written[1].iterdir()}
    assert names == {f"{name}.png" for name in pictures} | {
        "index.html",
        "scores.md",
        "scores.csv",
        "published.md",
        "published.csv",
    }


def test_every_table_of_the_markdown_is_in_the_page(page, written):
    text = (written[1] / "scores.md").read_text(encoding="utf-8")
    for title in ("Scores", f"Difference from {SHOWN}", "nsmc accuracy, strict", "unsmile lrap, strict"):
        assert title in page.texts
    for title in ("## Scores", "## Difference from ", "## nsmc accuracy, strict", "## unsmile lrap, strict"):
        assert title in text
    for cell in ("75.00 ± 0.00", "fewer than 5 seeds"):
        assert cell in text and any(cell in one for one in page.texts)


def test_errors_are_of_the_first_seed_with_names_of_labels(page):
    place = page.texts.index("1 of 1 errors, seed 0")
    assert page.texts[place + 1 : place + 7] == ["text", "gold", "predicted", f"{SHOWN} 2 / 가나", "0", "1"]
    assert "The 3 farthest of 3 examples, seed 0" in page.texts
    assert "(none)" in page.texts and "여성/가족" in page.texts


def test_the_same_results_give_the_same_files(tmp_path):
    results = write_results(tmp_path, make_every_kind())
    for name in "ab":
        write_score_report(tmp_path / name, results)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_missing_predictions_are_said_to_be_where_they_are_missed(tmp_path):
    runs = make_runs([15, 16], predictions="gone.jsonl")
    page = Page(write_score_report(tmp_path / "out", write_results(tmp_path, [(row, None) for row, _ in runs])).page)
    place = page.texts.index("out/base", page.texts.index("A line for each seed, a dot at the step that was chosen."))
    assert page.texts[place + 1].startswith(f"No predictions: there is no {tmp_path}/gone.jsonl; copy it from")
    assert page.pictures().keys() == {"curves-1"}


def test_of_the_checkpoints_of_one_run_the_last_is_looked_into(tmp_path):
    runs = []
    for step, num_right in ((1000, 13), (200, 12), (3000, 16)):
        runs += make_runs([num_right], model=f"run/checkpoint-{step}", step=step, weights_sha256=f"{step}" * 16)
    page = Page(write_score_report(tmp_path / "out", write_results(tmp_path, runs)).page)
    assert page.pictures().keys() == {"steps", "curves-1", "confusions-1-1", "classes-1-1"}
    (left_out,) = [text for text in page.texts if text.startswith("Of the checkpoints of one run the last")]
    assert left_out.endswith("not run/checkpoint-1000, step 1000, run/checkpoint-200, step 200.")


def test_an_unknown_baseline_leaves_nothing(tmp_path):
    results = write_results(tmp_path, make_runs([15]))
    with pytest.raises(InputError, match="give --baseline one of out/base"):
        write_score_report(tmp_path / "out", results, baseline="x")
    with pytest.raises(InputError, match="--baseline is a model of the results; give --results"):
        write_score_report(tmp_path / "out", baseline="x")
    assert not (tmp_path / "out").exists()


# published scores


def test_without_results_the_published_scores_are_all_there_is(tmp_path):
    report = write_score_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "published.md", "published.csv"}
    packaged = Path(score_report.__file__).with_name("published.csv")
    assert (tmp_path / "published.csv").read_bytes() == packaged.read_bytes()
    page, text = Page(report.page), (tmp_path / "published.md").read_text(encoding="utf-8")
    assert "Only scores of one protocol can be compared." in text and "Only scores of one protocol" in page.text
    for cell in read_published():
        names = [cell.model, cell.score, cell.protocol, cell.verdict, f"{cell.published:.2f}"]
        assert f"| {' | '.join(names)} |" in text
    assert {cell.task for cell in read_published()} <= set(page.texts)


def test_published_scores_show_the_best_on_test_beside_what_dev_would_have_chosen(tmp_path):
    write_score_report(tmp_path)
    cell = next(cell for cell in read_published() if cell.dev_selected is not None and cell.task == "paws")
    found = f"{cell.best_on_test:.2f} ({cell.best_step}) | {cell.dev_selected:.2f} ({cell.dev_step}) | {cell.last:.2f}"
    assert found in (tmp_path / "published.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("selected_on", "cells"), [("dev", "|  | 77.50 |"), ("test", "| 77.50 |  |")])
def test_our_scores_stand_below_the_published_ones_under_what_they_were_chosen_on(tmp_path, selected_on, cells):
    results = write_results(tmp_path, make_runs([15, 16], selected_on=selected_on))
    write_score_report(tmp_path / "out", results)
    text = (tmp_path / "out/published.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| out/base ")]
    assert f"| accuracy | strict |  |  {cells} 77.50 | ours, 2 seeds; " in line and "fewer than 5 seeds" in line


def test_a_terminal_is_shown_every_published_score_with_a_mark_at_what_is_not_ok():
    lines = describe_published(read_published()).splitlines()
    (line,) = [line for line in lines if line.startswith("KcELECTRA-base ")]
    own = [cell for cell in read_published() if cell.model == "KcELECTRA-base"]
    assert [float(word) for word in line.split()[1:] if "." in word] == [cell.published for cell in own]
    marks = [mark for mark, verdict in (note.split(" ", 1) for note in lines[13:]) if verdict == "wrong model"]
    assert f"74.80 {marks[0]}" in line and len({len(line) for line in lines[:2]}) == 1


def test_published_scores_are_checked_against_a_file_of_all_steps(tmp_path):
    path = tmp_path / "sweep.csv"
    path.write_text(
        "model,task,metric,finetune_step,dev_score,test_score\nKcELECTRA-base-50135-848k,nsmc,acc,100,,0.9171\n"
    )
    report = write_score_report(tmp_path / "out", sweep_file=path)
    cell = next(cell for cell in report.published if (cell.model, cell.task) == ("KcELECTRA-base", "nsmc"))
    assert (cell.verdict, cell.best_step) == ("ok", 100)
    assert "91.71 (100)" in (tmp_path / "out/published.md").read_text(encoding="utf-8")


# pictures


@pytest.fixture
def hangul_font(tmp_path, monkeypatch):
    """A font with a box for each of these characters, the only one that is installed."""
    characters = "여성/가족 남소수자인종국적연령지역교기타혐오악플욕설clean0123456789,()"
    glyphs = {".notdef", *(f"u{ord(character):04X}" for character in characters)}
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(sorted(glyphs))
    builder.setupCharacterMap({ord(character): f"u{ord(character):04X}" for character in characters})
    builder.setupGlyf(dict.fromkeys(sorted(glyphs), pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(sorted(glyphs), (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "boxes.ttf")
    entry = matplotlib.font_manager.FontEntry(fname=str(tmp_path / "boxes.ttf"), name="Boxes", weight=400)
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", [entry])
    return entry.fname


@pytest.fixture
def no_hangul_font(monkeypatch):
    fonts = [font for font in matplotlib.font_manager.fontManager.ttflist if font.name.startswith(("Last", "DejaVu"))]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", fonts)


def read_unsmile(tmp_path):
    runs = [run for run in make_every_kind() if run[0]["task"] == "unsmile"]
    return read_groups(write_results(tmp_path, runs))[0]


def test_hangul_is_drawn_in_an_installed_font_that_has_it(tmp_path, hangul_font):
    names = name_for_drawing(["여성/가족", "clean"])
    assert (names.texts, names.font.get_file(), names.key) == (["여성/가족", "clean"], hangul_font, "")
    picture = draw_classes(read_unsmile(tmp_path), tmp_path / "a.png")
    assert picture.caption.endswith("of 2 seeds.")


def test_without_a_font_classes_are_numbered_and_the_page_has_the_key(tmp_path, no_hangul_font):
    names = name_for_drawing(["여성/가족", "clean"])
    assert (names.texts, names.key) == (["1", "2"], " 1: 여성/가족; 2: clean.")
    results = write_results(tmp_path, make_every_kind())
    page = Page(write_score_report(tmp_path / "out", results).page)
    assert any("1: 여성/가족; 2: 남성; 3: 성소수자;" in text for text in page.texts)


def test_a_name_is_no_formula_is_not_hidden_and_not_too_long(tmp_path):
    names = name_for_drawing(["$x^2$", "_hidden", "a" * 60])
    assert names.texts == [r"\$x^2\$", " _hidden", "…" + "a" * 47]
    runs = [*make_runs([15], model="_a$\\frac$"), *make_runs([16], **OTHER)]
    assert draw_curves(read_groups(write_results(tmp_path, runs)), tmp_path / "a.png").path.is_file()


def axes_of(monkeypatch) -> list:
    """Return where the axes of what is drawn from now on are kept."""
    kept = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *arguments, **options):
        kept.append(figure.axes[0])
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return kept


def test_confusions_are_counted_over_the_seeds_and_shared_by_gold_class(tmp_path, monkeypatch):
    kept = axes_of(monkeypatch)
    (group,) = read_groups(write_results(tmp_path, make_runs([15, 11])))
    draw_confusions(group, tmp_path / "a.png")
    gold = np.array([number % 2 for _ in range(2) for number in range(20)])
    right = np.array([number < num_right for num_right in (15, 11) for number in range(20)])
    predicted = np.where(right, gold, 1 - gold)
    counts = np.array([[((gold == i) & (predicted == j)).sum() for j in range(2)] for i in range(2)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.array_equal(kept[0].images[0].get_array(), shares)
    shown = {text.get_position(): text.get_text() for text in kept[0].texts}
    assert shown == {(j, i): f"{100 * shares[i, j]:.1f} %\n{counts[i, j]}" for i in range(2) for j in range(2)}


def test_bars_are_the_mean_f1_of_a_class_over_the_seeds(tmp_path, monkeypatch):
    kept = axes_of(monkeypatch)
    lines = [make_lines(predictions, [0, 0, 1]) for predictions in ([0, 0, 0], [0, 0, 1])]
    runs = [(make_row("nsmc", seed, one, predictions=f"{seed}"), one) for seed, one in enumerate(lines)]
    (group,) = read_groups(write_results(tmp_path, runs))
    draw_classes(group, tmp_path / "a.png")
    assert [bar.get_width() for bar in kept[0].patches] == pytest.approx([100 * (0.8 + 1) / 2, 50.0])
    assert [label.get_text() for label in kept[0].get_yticklabels()] == ["0 (2)", "1 (1)"]


def test_one_seed_has_no_deviation(tmp_path, monkeypatch):
    kept = axes_of(monkeypatch)
    (group,) = read_groups(write_results(tmp_path, make_runs([15])))
    assert draw_classes(group, tmp_path / "a.png").caption.endswith("; one seed.")
    assert not kept[0].collections  # lines from mean - deviation to mean + deviation
    assert draw_confusions(group, tmp_path / "a.png").caption.endswith(", of one seed.")


def test_curves_are_a_line_a_seed_with_a_dot_at_the_chosen_step(tmp_path, monkeypatch):
    kept = axes_of(monkeypatch)
    runs = make_runs([15, 16])
    runs[0][0]["curve"] = [{"step": 10, "metrics": {"accuracy": 0.5}}, {"step": 20, "metrics": {"accuracy": 0.7}}]
    draw_curves(read_groups(write_results(tmp_path, runs)), tmp_path / "a.png")
    first, dot = kept[0].lines[:2]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([10, 20], [50.0, 70.0])
    assert (dot.get_xdata()[0], dot.get_ydata()[0], kept[0].get_ylabel()) == (20, 70.0, "accuracy on dev, %")
    for row, _ in runs:
        row["curve"] = row["curve"][:1]
    assert draw_curves(read_groups(write_results(tmp_path, runs)), tmp_path / "dot.png") is None


def test_scores_over_pretraining_are_a_line_a_task_in_the_order_of_steps(tmp_path, monkeypatch):
    kept = axes_of(monkeypatch)
    runs = []
    for step, nums_right in ((900, [14, 16]), (100, [12, 13])):
        runs += make_runs(nums_right, model=f"run/{step}", step=step, weights_sha256=f"{step}" * 20)
    assert draw_steps(read_groups(write_results(tmp_path, runs[:2])), tmp_path / "a.png") is None
    drawn = draw_steps(read_groups(write_results(tmp_path, runs)), tmp_path / "a.png")
    assert drawn.caption == "Mean and standard deviation over the seeds."
    (line,) = [line for line in kept[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([100, 900], pytest.approx([62.5, 75.0]))
    (bars,) = kept[0].collections
    low, high = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(100 * np.std([12, 13], ddof=1) / 20)
    one = draw_steps(read_groups(write_results(tmp_path / "one", runs[::2])), tmp_path / "b.png")
    (bars,) = kept[1].collections
    assert one.caption == "One seed." and not any(map(len, bars.get_segments()))


# the recipe


@pytest.fixture
def run_recipe(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("report_recipe", ROOT / "recipes/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        module.main()

    return run


def test_the_recipe_prints_its_tables_and_where_the_page_is(run_recipe, tmp_path, capsys):
    results = write_results(tmp_path / "finetune", [*make_runs([15, 16]), *make_runs([17, 18], **OTHER)])
    run_recipe("--results", str(results), "--baseline", "out/other")
    printed = capsys.readouterr().out
    assert "| out/base | 77.50 ± 3.54 " in printed and "## Difference from out/other" in printed
    assert "-10.00" in printed and "KcELECTRA-base-v2022" in printed
    assert printed.endswith("report: out/report/index.html\n") and (tmp_path / "out/report/index.html").is_file()


def test_the_recipe_without_results_prints_the_published_scores(run_recipe, tmp_path, capsys):
    run_recipe("--output_dir", "here")
    printed = capsys.readouterr().out
    assert "KcELECTRA-base-v2022" in printed and "wrong metric" in printed and "report: here/index.html" in printed
