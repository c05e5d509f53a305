"""The card of a corpus says what its manifest says, and renders on the Hub."""

import fnmatch
import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from kcelectra.arguments import parse_args
from kcelectra.corpus.build import CorpusArguments, plan_corpus
from kcelectra.corpus.cleaning import RULE_SETS, get_rules
from kcelectra.corpus.shards import STEPS, count_tasks
from kcelectra.manifest import read_manifest, write_manifest
from kcelectra.pretraining.run_arguments import DataArguments
from kcelectra.release import corpus_card
from kcelectra.release.corpus_card import write_corpus_card

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory, sample_comments):
    """The embedded sample, with replies, bad rows and personal data."""
    directory = tmp_path_factory.mktemp("card")
    rows = [json.dumps(row, ensure_ascii=False) for row in sample_comments]
    rows += ['{"text": null}', "{", '{"text": "연락은 010-2345-6789 또는 a.b@example.com 으로 주세요"}']
    (directory / "comments.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (directory / "more.txt").write_text(
        "한 줄에 하나씩 있는 댓글입니다\n번호는 02-345-6789 입니다\n", encoding="utf-8"
    )
    sources = [str(directory / name) for name in ("comments.jsonl", "more.txt")]
    work_dir = plan_corpus(CorpusArguments(sources, str(directory / "corpus"), pii="mask", min_chars=5))
    for step in STEPS:
        for task in range(count_tasks(step, work_dir)):
            step(work_dir, task)
    return directory / "corpus"


@pytest.fixture(scope="module")
def card(corpus_dir):
    return write_corpus_card(corpus_dir, repo_id="someone/korean-comments", license="cc-by-sa-4.0").read_text("utf-8")


@pytest.fixture
def write_card(corpus_dir, tmp_path, monkeypatch):
    """Write the card of the corpus as if its manifest said something else; without plots, which are slow."""

    def write(**changes) -> str:
        for shard in corpus_dir.glob("*.parquet"):
            shutil.copy(shard, tmp_path)
        manifest = read_manifest(corpus_dir)
        facts = {key: value for key, value in manifest.items() if key not in ("files", "versions")}
        settings = facts["settings"] | changes.pop("settings", {})
        rules = get_rules(settings["rules"])
        facts["rules"] = {rule.__name__: str(rule.__doc__).splitlines()[0] for rule in rules}
        facts["changed_by_rule"] = dict.fromkeys(facts["rules"], 12_345)
        write_manifest(tmp_path, **(facts | {"settings": settings} | changes))
        monkeypatch.setattr(corpus_card, "draw_corpus_plots", lambda manifest, output_dir: [])
        return write_corpus_card(tmp_path, repo_id="someone/comments").read_text(encoding="utf-8")

    return write


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def tables(card: str) -> dict[str, list[list[str]]]:
    """Return the rows of each table by the heading it stands under, the header and the line below it too."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in body(card).splitlines():
        heading = line.lstrip("# ") if line.startswith("#") else heading
        if line.startswith("|"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def counts(table: list[list[str]]) -> dict[str, int]:
    return {row[0].strip("`*"): int(row[-1].replace(",", "")) for row in table[2:]}


def block(card: str, language: str) -> str:
    return dict(re.findall(r"^```(\w*)\n(.*?)^```", card, re.DOTALL | re.MULTILINE))[language]


def require_well_formed(card: str) -> None:
    lines = body(card).splitlines()
    assert card.count("```") % 2 == 0
    assert "{{" not in card and "{%" not in card and "None" not in card
    for table in tables(card).values():
        assert len(table) >= 3, f"a table without rows: {table}"
        assert all(re.fullmatch(":?-+:?", cell) for cell in table[1])
        assert {len(row) for row in table} == {len(table[0])}, table
    for line, after in pairwise([*lines, ""]):
        assert not (after.startswith("|") and line and not line.startswith("|")), f"no empty line before {after}"
        assert not (line.startswith("|") and after and not after.startswith("|")), f"no empty line after {line}"
    written = [line for line in lines if line]
    assert not [line for line, after in pairwise([*written, "#"]) if line.startswith("#") and after.startswith("#")]
    assert "\n\n\n" not in body(card)


# metadata


def test_the_metadata_is_what_the_hub_needs(card, corpus_dir):
    data = DatasetCard.load(corpus_dir / "README.md").data.to_dict()
    assert data["license"] == "cc-by-sa-4.0"
    assert data["language"] == "ko"
    assert data["size_categories"] == "1K<n<10K"
    assert "fill-mask" in data["task_categories"]
    (config,) = data["configs"]
    (train,) = config["data_files"]
    assert config["config_name"] == "default" and train["split"] == "train"
    files = [path.relative_to(corpus_dir).as_posix() for path in corpus_dir.rglob("*") if path.is_file()]
    assert fnmatch.filter(files, train["path"]) == [path.name for path in sorted(corpus_dir.glob("*.parquet"))]


@pytest.mark.parametrize(
    ("num_kept", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (683_580, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (99_999_999, "10M<n<100M"),
        (340_000_000, "100M<n<1B"),
        (999_999_999, "100M<n<1B"),
        (1_000_000_000, "1B<n<10B"),
    ],
)
def test_the_size_category_holds_the_number_of_comments(write_card, tmp_path, num_kept, category):
    assert f"{num_kept:,} Korean comments" in write_card(num_kept=num_kept)
    assert DatasetCard.load(tmp_path / "README.md").data.size_categories == category


# what it says


def test_every_number_in_the_tables_is_the_manifests(card, corpus_dir):
    manifest, found = read_manifest(corpus_dir), tables(card)
    fates = {row[0].strip("*"): int(row[1].replace(",", "")) for row in found["What became of the comments"][2:]}
    assert fates == {"read": manifest["num_read"], **manifest["dropped"], "kept": manifest["num_kept"]}
    assert counts(found["Cleaning"]) == manifest["changed_by_rule"]
    assert counts(found["Personal data"]) == manifest["personal_data"]
    assert manifest["personal_data"] == {"PHONE": 2, "EMAIL": 1}  # or the test shows nothing
    assert len(manifest["dropped"]) >= 4 and all(manifest["dropped"].values())


def test_every_large_number_of_the_card_is_in_the_manifest(write_card, tmp_path):
    dropped = {"duplicate": 7_654_321, "too short": 1_234_567}
    card = write_card(num_read=98_765_432, num_kept=89_876_544, dropped=dropped, personal_data={"PHONE": 4_321})
    large = {int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3})+", body(card))}
    assert len(large) == 6
    assert large <= set(map(int, re.findall(r"\d+", (tmp_path / "manifest.json").read_text(encoding="utf-8"))))


def test_what_was_dropped_and_kept_is_what_was_read(card):
    first, *dropped_and_kept = tables(card)["What became of the comments"][2:]
    assert sum(int(row[1].replace(",", "")) for row in dropped_and_kept) == int(first[1].replace(",", ""))


def test_shares_are_of_what_was_read(card, corpus_dir):
    for _, count, share in tables(card)["What became of the comments"][2:]:
        exact = 100 * int(count.replace(",", "")) / read_manifest(corpus_dir)["num_read"]
        assert float(share.rstrip("%")) == pytest.approx(exact, abs=0.0005)


def test_rules_stand_in_their_order_with_what_they_do(card):
    for rule, row in zip(RULE_SETS["corpus"], tables(card)["Cleaning"][2:], strict=True):
        assert row[:2] == [f"`{rule.__name__}`", rule.__doc__.splitlines()[0]]


@pytest.mark.parametrize("dedup", ["global", "thread", "none"])
@pytest.mark.parametrize("pii", ["count", "mask", "drop"])
def test_every_treatment_has_its_sentence(write_card, dedup, pii):
    card = write_card(settings={"dedup": dedup, "pii": pii})
    require_well_formed(card)
    assert {key: corpus_card.DEDUP[key] in card for key in corpus_card.DEDUP} == {
        key: key == dedup for key in corpus_card.DEDUP
    }
    assert {key: corpus_card.PERSONAL_DATA[key] in card for key in corpus_card.PERSONAL_DATA} == {
        key: key == pii for key in corpus_card.PERSONAL_DATA
    }


@pytest.mark.parametrize("dedup", ["global", "thread", "none"])
def test_only_a_corpus_without_duplicates_is_said_to_be_one(write_card, dedup):
    claim = re.search("without exact duplicates(?! with)", write_card(settings={"dedup": dedup}))
    assert (claim is not None) == (dedup == "global")


def test_replies_are_spoken_of_where_there_are_some(card, write_card, corpus_dir):
    assert "`parent_id`" in card and " and kept for a reply to them." in card
    num_rescued = read_manifest(corpus_dir)["num_kept_for_replies"]
    assert num_rescued > 0 and f"Among those kept, {num_rescued:,} are" in card
    without = write_card(columns=["text"], num_kept_for_replies=0)
    assert "`text`" in without and "`thread`" not in without
    assert "parent_id" not in without and "kept for a reply" not in without


# how it renders


def test_the_card_is_well_formed(card):
    require_well_formed(card)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": ["text"], "num_kept_for_replies": 0, "personal_data": {}, "dropped": {}},
        {"settings": {"rules": "v2022"}, "dropped": {"invalid CSV: line contains NUL": 1_234_567}},
        {"settings": {"revision": "0123abcd", "min_chars": 0}},
        {"settings": {"rules": "none"}},
    ],
    ids=["bare", "v2022", "revision", "no rules"],
)
def test_a_card_with_less_to_tell_is_well_formed(write_card, changes):
    require_well_formed(write_card(**changes))


def test_plots_are_pictures_that_the_card_shows(card, corpus_dir):
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card)
    assert sorted(pictures) == sorted(f"plots/{path.name}" for path in (corpus_dir / "plots").iterdir())
    for name in pictures:
        content = (corpus_dir / name).read_bytes()
        assert content.startswith(PNG) and len(content) > 1000


def test_a_corpus_of_which_nothing_was_changed_has_plots_too(corpus_dir, tmp_path):
    manifest = read_manifest(corpus_dir) | {"changed_by_rule": {}, "dropped": {}, "num_by_length": [0] * 501}
    paths = corpus_card.draw_corpus_plots(manifest, tmp_path / "plots")
    assert all(path.read_bytes().startswith(PNG) for path in paths)


def test_the_same_corpus_has_the_same_card(card, corpus_dir):
    plots = {path: path.read_bytes() for path in (corpus_dir / "plots").iterdir()}
    again = write_corpus_card(corpus_dir, repo_id="someone/korean-comments", license="cc-by-sa-4.0")
    assert again.read_text(encoding="utf-8") == card
    assert plots == {path: path.read_bytes() for path in plots}


def test_no_comment_is_quoted(card, corpus_dir):
    texts = [text for path in corpus_dir.glob("*.parquet") for text in pq.read_table(path)["text"].to_pylist()]
    assert len(texts) > 1000
    assert not [text for text in texts if text in card]


def test_no_directory_of_this_machine_is_named(card, corpus_dir):
    assert str(corpus_dir.parent) not in card


# what it tells to type


def test_the_snippet_loads_the_repository(card):
    snippet = block(card, "python")
    compile(snippet, "card", "exec")
    assert 'load_dataset("someone/korean-comments", split="train", streaming=True)' in snippet


def test_without_a_repository_the_snippet_loads_the_directory(corpus_dir, tmp_path):
    mine = shutil.copytree(corpus_dir, tmp_path / "mine")
    card = write_corpus_card(mine).read_text(encoding="utf-8")
    assert f'load_dataset("{mine}", split="train", streaming=True)' in block(card, "python")
    assert "\n# mine\n" in card


def command(card: str) -> CorpusArguments:
    words = shlex.split(block(card, ""))
    assert words[:2] == ["python", "recipes/build_corpus.py"]
    return parse_args(CorpusArguments, argv=words[2:])[0]


def test_the_command_builds_the_same_corpus(card, corpus_dir):
    manifest = read_manifest(corpus_dir)
    arguments = vars(command(card))
    assert arguments["sources"] == ["comments.jsonl", "more.txt"]
    assert {key: arguments[key] for key in manifest["settings"]} == manifest["settings"]


def test_the_command_quotes_names_that_need_it(write_card):
    sources = [{"path": f"/data/{name}", "size": 1} for name in ("댓글 (1월).jsonl", "it's.txt", "$HOME.csv")]
    assert command(write_card(sources=sources)).sources == [Path(source["path"]).name for source in sources]


def test_a_source_on_the_hub_keeps_its_owner(write_card):
    card = write_card(sources=[{"path": "someone/comments", "revision": "0123abcd"}])
    assert command(card).sources == ["someone/comments"]


def test_the_arguments_it_gives_for_pretraining_are_some(card):
    words = re.search(r"--rules none[^`\n]*", card)[0].split()
    (arguments,) = parse_args(DataArguments, argv=words)
    assert (arguments.rules, arguments.min_chars) == ("none", 0)
