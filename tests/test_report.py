"""The report opens offline, shows what was logged, and says whether the run is learning."""

import base64
import json
import math
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.image import imread

from kcelectra.errors import InputError
from kcelectra.release.plots import PLOTS, draw_plots
from kcelectra.release.report import check_learning, loading_snippet, write_report

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img"}


def make_history(num_entries: int = 30) -> list[dict]:
    entries = [
        {
            "step": 10 * (i + 1),
            "generator_loss": 8 - 3 * i / num_entries,
            "unigram_entropy": 6.2,
            "discriminator_loss": 0.6 - 0.3 * i / num_entries,
            "fake_rate_entropy": 0.35 + 0.05 * math.sin(i),
            "discriminator_auc": 0.5 + 0.4 * i / num_entries,
            "discriminator_precision": 0.6,
            "discriminator_recall": 0.1,
            "generator_accuracy": 0.2,
            "sampled_accuracy": 0.1,
            "fake_rate": 0.13,
            "learning_rate": 1e-3 * (1 - i / num_entries),
            "tokens_per_second": 12_345.6,
        }
        for i in range(num_entries)
    ]
    return [*entries, {"step": 10 * num_entries, "train_runtime": 12.5, "total_flos": 1e12, "train_loss": 20.0}]


def make_evaluations() -> list[dict]:
    return [
        {"step": step, "eval_generator_loss": 9 - step / 50, "eval_discriminator_loss": 0.7 - step / 1000}
        for step in (100, 200, 300)
    ]


class Page(HTMLParser):
    """Elements and text of a page; every element must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
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
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "<i>run"


@pytest.fixture(scope="module")
def page(run_dir):
    facts = {
        "Model": {"parameters": 1_234_567, "tied": True, "ratio": 0.123456, "FLOPs": 1.5e12, "none": None},
        "<script>alert(1)</script>": {"<b>key</b>": "<script>alert('value')</script> & \"quoted\""},
    }
    return Page(write_report(run_dir, make_history(), facts=facts, alarms=[]))


# the page


def test_the_page_needs_no_network_and_no_other_file(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "script", "iframe", "object", "embed", "base", "video", "audio"}
        for name in ("src", "href", "srcset", "data", "action", "background", "style"):
            assert (attributes.get(name) or "data:image/png;").startswith("data:image/png;")
    (style,) = [text for text in page.texts if "font:" in text]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_holds_every_curve_as_a_picture(page, run_dir):
    images = page.all("img")
    assert [image["alt"] for image in images] == [plot.name for plot in PLOTS]
    for image in images:
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data == (run_dir / "report" / f"{image['alt']}.png").read_bytes()
        assert data.startswith(PNG)
        height, width, _ = imread(BytesIO(data)).shape
        assert height >= 300
        assert width >= 500


def test_the_report_is_these_files(page, run_dir):
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    expected = {"index.html", "history.json", *(f"{plot.name}.png" for plot in PLOTS)}
    assert names == {f"report/{name}" for name in expected}


def test_the_history_is_what_was_logged_in_training(page, run_dir):
    history = json.loads((run_dir / "report" / "history.json").read_text(encoding="utf-8"))
    assert history == make_history()[:-1]


def test_facts_are_escaped(page):
    assert not page.all("script")
    assert not page.all("b")
    assert "<script>alert(1)</script>" in page.texts
    assert "<b>key</b>" in page.texts
    assert "<script>alert('value')</script> & \"quoted\"" in page.texts


def test_the_name_of_the_run_is_escaped(page):
    assert page.texts.count("Pretraining report: <i>run") == 2  # title and heading
    assert not page.all("i")


def test_numbers_are_written_to_be_read(page):
    for key, shown in (("parameters", "1,234,567"), ("tied", "True"), ("ratio", "0.1235"), ("none", "None")):
        assert page.texts[page.texts.index(key) + 1] == shown, key
    assert page.texts[page.texts.index("FLOPs") + 1] == "1,500,000,000,000"


def test_the_page_says_how_to_load_the_result(page, run_dir):
    (snippet,) = [text for text in page.texts if "from_pretrained" in text]
    assert snippet == loading_snippet(run_dir)
    assert snippet.splitlines() == [
        "from transformers import AutoModel",
        f'model = AutoModel.from_pretrained("{run_dir.as_posix()}/export/discriminator")',
    ]


def test_a_report_is_written_again_in_place(tmp_path):
    write_report(tmp_path, make_history(3), facts={}, alarms=[])
    page = Page(write_report(tmp_path, make_history(4), facts={"Seen": {"again": 1}}, alarms=[]))
    assert "Seen" in page.texts
    assert len(json.loads((tmp_path / "report" / "history.json").read_text())) == 4


ALARMS = [
    (100, "collapsed <b>sampler", "Sampled tokens & so on.", 200),
    (250, "recall stuck at 0", "Look there.", None),
]


def test_the_page_lists_the_alarms_and_for_how_long(tmp_path):
    page = Page(write_report(tmp_path, make_history(), facts={}, alarms=ALARMS))
    begin = page.texts.index("what it means") + 1
    assert page.texts[begin : begin + 6] == [
        "100 to 200",
        "collapsed <b>sampler",
        "Sampled tokens & so on.",
        "250 to the end",
        "recall stuck at 0",
        "Look there.",
    ]
    assert "No alarms." not in page.texts
    for path in draw_plots(make_history()[:-1], tmp_path, marked_steps=[100, 250]):
        assert path.read_bytes() == (tmp_path / "report" / path.name).read_bytes()


def test_a_healthy_run_has_no_alarms(page):
    assert page.texts[page.texts.index("Health") + 1] == "No alarms."
    assert "what it means" not in page.texts


# the curves


def share_of_ink(path: Path) -> float:
    return float((imread(path)[..., :3].min(axis=-1) < 0.9).mean())


def test_the_curves_show_the_data(tmp_path):
    history = make_history()[:-1]
    other = [{**entry, "generator_loss": 9.0} for entry in history]
    for name, entries in (("a", history), ("b", other)):
        (tmp_path / name).mkdir()
        draw_plots(entries, tmp_path / name)
    for plot in PLOTS:
        data = {name: (tmp_path / name / f"{plot.name}.png").read_bytes() for name in "ab"}
        assert (data["a"] != data["b"]) == ("generator_loss" in plot.curves)
        assert share_of_ink(tmp_path / "a" / f"{plot.name}.png") > 0.01  # not a white sheet


def test_losses_of_rows_that_are_not_trained_on_are_drawn(tmp_path):
    history = make_history()[:-1]
    for name, entries in (("without", history), ("with", [*history, *make_evaluations()])):
        (tmp_path / name).mkdir()
        draw_plots(entries, tmp_path / name)
    for plot in PLOTS:
        data = {name: (tmp_path / name / f"{plot.name}.png").read_bytes() for name in ("without", "with")}
        assert (data["without"] != data["with"]) == any(key.startswith("eval_") for key in plot.curves), plot.name


def test_an_alarm_is_marked_in_every_curve_where_it_begins(tmp_path):
    def draw(*marked_steps):
        files = draw_plots(make_history()[:-1], tmp_path, marked_steps=marked_steps)
        return [imread(path)[..., :3] for path in files]

    for plain, *marked in zip(draw(), draw(30, 30), draw(280), strict=True):
        for picture, (left, right) in zip(marked, ((0.05, 0.35), (0.7, 1.0)), strict=True):
            is_red = (picture[..., 0] > 0.8) & (picture[..., 1] < 0.3) & (picture != plain).any(axis=-1)
            columns = is_red.nonzero()[1] / picture.shape[1]
            assert len(columns) > 50 and left < columns.min() <= columns.max() < right


def test_every_curve_is_a_key_that_is_logged():
    logged = make_history()[0].keys() | make_evaluations()[0].keys()
    assert {key for plot in PLOTS for key in plot.curves + plot.baselines} <= logged


@pytest.mark.parametrize("num_entries", [1, 1000])
def test_a_history_of_any_length_is_drawn(tmp_path, num_entries):
    files = draw_plots(make_history(num_entries)[:-1], tmp_path)
    assert [path.name for path in files] == [f"{plot.name}.png" for plot in PLOTS]


def test_a_diverged_run_is_reported(tmp_path):
    history = make_history(5)
    history[-2] |= {"generator_loss": math.nan, "discriminator_loss": math.inf, "discriminator_auc": math.nan}
    page = Page(write_report(tmp_path, history, facts={}, alarms=[]))
    assert page.texts.count("not yet") == 3
    assert "yes" not in page.texts


# is it learning


LEARNING = {
    "step": 1,
    "generator_loss": 5.0,
    "unigram_entropy": 6.0,
    "discriminator_loss": 0.3,
    "fake_rate_entropy": 0.4,
    "discriminator_auc": 0.8,
}


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, [True, True, True]),
        ({"generator_loss": 6.0}, [False, True, True]),
        ({"discriminator_loss": 0.4}, [True, False, True]),
        ({"discriminator_auc": 0.5}, [True, True, False]),
        ({"generator_loss": 7.0, "discriminator_loss": 0.5, "discriminator_auc": 0.4}, [False, False, False]),
    ],
)
def test_a_claim_holds_only_below_its_baseline(changed, holds):
    checks = check_learning([LEARNING | changed])
    assert [check["holds"] for check in checks] == holds
    assert [check["baseline"] for check in checks] == ["6.0000", "0.4000", "0.5"]
    assert checks[0]["value"] == f"{(LEARNING | changed)['generator_loss']:.4f}"


def test_the_last_training_interval_decides():
    worse = LEARNING | {"generator_loss": 7.0}
    summary = {"step": 2, "train_runtime": 3.0}
    assert check_learning([worse, LEARNING, summary])[0]["holds"]
    assert not check_learning([LEARNING, worse, summary])[0]["holds"]


def test_the_page_says_yes_and_not_yet(tmp_path):
    entry = make_history(1)[0] | LEARNING | {"discriminator_auc": 0.4}
    page = Page(write_report(tmp_path, [entry], facts={}, alarms=[]))
    assert (page.texts.count("yes"), page.texts.count("not yet")) == (2, 1)


@pytest.mark.parametrize("history", [[], [{"step": 3, "train_runtime": 1.0}]])
def test_a_run_that_logged_nothing_is_an_error_with_the_cure(tmp_path, history):
    for report in (lambda: write_report(tmp_path, history, facts={}, alarms=[]), lambda: check_learning(history)):
        with pytest.raises(InputError, match="the run logged nothing; give --logging_strategy steps"):
            report()
    assert not list(tmp_path.iterdir())
