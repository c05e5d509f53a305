"""A corpus and a tokenizer are pushed to a Hub that is served here, and read from it as their visitors do."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import HubServer, run_client
from transformers import AutoTokenizer

from kcelectra.corpus.build import CorpusArguments, build_corpus, plan_corpus
from kcelectra.corpus.cleaning import clean
from kcelectra.corpus.shards import STEPS, count_tasks
from kcelectra.manifest import read_manifest, seal_manifest
from kcelectra.release.publish import _without_paths, release_corpus, release_tokenizer
from kcelectra.tokenization import train_tokenizer
from kcelectra.tokenization.training import extend_tokenizer

RECIPE = Path(__file__).parents[1] / "recipes" / "publish.py"
TOKEN = "hf_canaryThatMustNotSing"  # of someone, the only user
PHONE = "010-2345-6789"
SENTENCE = "이 영화 진짜 재밌어요 ㅋㅋㅋ"
REPO = "someone/comments"
CARD_FILES = ["README.md", "manifest.json", "plots/lengths.png", "plots/rules.png"]
COLUMNS = ["text", "thread", "comment_id", "parent_id"]

# The recipe as its command line runs it, many times in one interpreter.
RUN_RECIPE = """
import contextlib, io, os, runpy, time, traceback
from huggingface_hub import constants

time.sleep = lambda seconds: None  # between the tries

def run(script, words, token, endpoint):
    constants.ENDPOINT = endpoint or os.environ["HF_ENDPOINT"]
    os.environ["HF_TOKEN"] = token
    sys.argv = [script, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}

script, runs, nowhere = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
for name, (words, token, endpoint) in runs.items():
    results[name] = run(script, words, token, endpoint)

from kcelectra.corpus.comments import find_revision

constants.ENDPOINT = nowhere
attempt("read from nowhere", lambda: find_revision("someone/comments"))
"""

READ = """
from pathlib import Path
from huggingface_hub import hf_hub_download
from kcelectra.corpus.build import build_corpus
from kcelectra.corpus.comments import CommentReader

name, old_commit = sys.argv[1], sys.argv[2]

def follow_the_card():
    card = Path(hf_hub_download(name, "README.md", repo_type="dataset")).read_text(encoding="utf-8")
    names = {}
    exec(card.split("```python")[1].split("```")[0], names)
    return names["comments"].column_names, list(names["comments"])

def read(**options):
    reader = CommentReader(name, **options)
    return [comment._asdict() for batch in reader for comment in batch], dict(reader.counts), reader.has_parents

def follow_the_card_of_the_tokenizer(sentence):
    card = Path(hf_hub_download("someone/tokenizer", "README.md")).read_text(encoding="utf-8")
    names = {}
    exec(card.split("```python")[1].split("```")[0], names)
    return [names["tokenizer"].tokenize(sentence)]

def show_the_tokenizer():
    paths = [Path(hf_hub_download("someone/tokenizer", name)) for name in ("README.md", "manifest.json")]
    return paths[0].read_text(encoding="utf-8"), json.loads(paths[1].read_text(encoding="utf-8"))

if not old_commit:
    attempt("snippet", follow_the_card)
else:
    attempt("tokenizer", lambda: follow_the_card_of_the_tokenizer(sys.argv[3]))
    attempt("card of the tokenizer", show_the_tokenizer)
attempt("read", lambda: read(revision=old_commit or None))
attempt("build", lambda: build_corpus(name, "again", rules="none", min_chars=0, dedup="none", num_workers=1))
"""


def write_sources(directory: Path) -> list[str]:
    """Write two sources, in a directory whose name is hard to quote: 3 MiB of comments, most in threads, some bad."""
    random = Random(0)
    syllables = [chr(random.randrange(0xAC00, 0xD7A4)) for _ in range(2000)]

    def text(num_words: int) -> str:
        return " ".join("".join(random.sample(syllables, 3)) for _ in range(num_words))

    directory = directory / """원본 "자료" \\1"""
    directory.mkdir()
    lines = []
    for i in range(800):
        parent = f"c{random.randrange(i)}" if i % 3 else None
        comment = {"text": text(300), "thread": f"글 {i // 10}", "comment_id": f"c{i}", "parent_id": parent}
        lines.append(json.dumps(comment, ensure_ascii=False).encode())
    lines[7] = lines[7].replace(b'{"text": "', f'{{"text": "제 번호는 {PHONE} 입니다 '.encode())
    lines[60:60] = [b'{"text": "\xff"}', b'{"text": ', b'{"text": null}', lines[0].replace(b'"c0"', b'"c800"')]
    paths = [directory / "댓글 모음.jsonl", directory / "news.csv"]
    paths[0].write_bytes(b"\n".join(lines))
    rows = [f'"{text(4 + i % 40)}",{i}' for i in range(300)]
    paths[1].write_text("\n".join(["text,thread", *rows, "no thread", f'"{PHONE} 전화 주세요",7', "짧다,7"]), "utf-8")
    return list(map(str, paths))


def rename_sources(corpus_dir: Path) -> None:
    """Rename the sources in the manifest: one name ends like the other, and has characters that JSON escapes."""
    manifest = read_manifest(corpus_dir)
    manifest["sources"] = [{"path": path, "size": 1} for path in ("/data/a.txt", "/mnt/data/a.txt", '/mnt/"b" \\.txt')]
    manifest["bad_rows"] = [f"{source['path']}, row 3: invalid UTF-8" for source in manifest["sources"]]
    manifest["damaged_files"] = ["cannot read /mnt/data/a.txt after row 9: [Errno 5] /mnt/data/a.txt"]
    (corpus_dir / "manifest.json").write_text(seal_manifest(manifest), "utf-8")


@pytest.fixture(scope="module")
def corpora(sample_comments, tmp_path_factory):
    """One corpus in shards of two sizes, one of sources with strange names, two that cannot be pushed; a tokenizer."""
    directory = tmp_path_factory.mktemp("corpora")
    sources = write_sources(directory)
    dirs = SimpleNamespace(**{name: directory / name for name in ("three", "two", "unfinished", "damaged", "named")})
    for output_dir, shard_mb in ((dirs.three, 1), (dirs.two, 2)):
        work_dir = plan_corpus(CorpusArguments(sources, str(output_dir), pii="mask", shard_mb=shard_mb))
        for step in STEPS:
            for task in range(count_tasks(step, work_dir)):
                step(work_dir, task)
    dirs.tokenizer = directory / "tokenizer"
    text = directory / "원본.txt"
    text.write_text("\n".join(clean(comment["text"]) for comment in sample_comments), "utf-8")
    train_tokenizer(str(text), dirs.tokenizer, vocab_size=1200)
    for path in (dirs.unfinished, dirs.damaged, dirs.named):
        shutil.copytree(dirs.three, path)
    rename_sources(dirs.named)
    (dirs.unfinished / "manifest.json").unlink()
    with open(dirs.damaged / "train-00001-of-00003.parquet", "r+b") as shard:
        shard.truncate(1000)
    return dirs


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with HubServer(root, users={TOKEN: "someone"}) as hub:
        yield hub


def words(corpus_dir: Path, repo_id: str = REPO, **options: str) -> list[str]:
    defaults = {"corpus_dir": str(corpus_dir), "repo_id": repo_id, "license": "cc-by-sa-4.0", "public": "true"}
    options = defaults | options
    return [word for key, value in options.items() for word in (f"--{key}", value) if value]


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def rows(corpus_dir: Path) -> list[dict]:
    return pa.concat_tables(map(pq.read_table, sorted(corpus_dir.glob("train-*.parquet")))).to_pylist()


@pytest.fixture(scope="module")
def pushed(hub, corpora, tmp_path_factory):
    """The first push, by the recipe, and what a visitor then reads."""
    directory = tmp_path_factory.mktemp("pushed")
    command = [sys.executable, str(RECIPE), *words(corpora.three)]
    environment = hub.client_env(directory / "home", TOKEN)
    finished = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    main, commit = hub.find("datasets", REPO, "main")
    snapshot = SimpleNamespace(files=contents(main), commit=commit, commits=list(hub.commits), main=main)
    visitor = run_client(READ, REPO, "", hub=hub, directory=directory)
    return SimpleNamespace(
        **vars(snapshot), stdout=finished.stdout, stderr=finished.stderr, visitor=visitor, directory=directory
    )


@pytest.fixture(scope="module")
def later(hub, corpora, pushed):
    """What the recipe said afterwards, run by run, and what it left on the Hub."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        runs = {
            "dry run": (words(corpora.two, dry_run="true"), TOKEN, nowhere),
            "same": (words(corpora.three), TOKEN, ""),
            "fewer shards": (words(corpora.two), TOKEN, ""),
            "private": (words(corpora.two, "someone/secret", public=""), TOKEN, ""),
            "private now": (words(corpora.two, public=""), TOKEN, ""),
            "first private": (words(corpora.two, "someone/shown", public=""), TOKEN, ""),
            "then public": (words(corpora.two, "someone/shown", revision="v1"), TOKEN, ""),
            "other with its tag": (words(corpora.three, "someone/shown", revision="v1"), TOKEN, ""),
            "first with its tag": (words(corpora.two, "someone/shown", revision="v1"), TOKEN, ""),
            "tokenizer": (
                words("", "someone/tokenizer", tokenizer_dir=str(corpora.tokenizer), license="mit"),
                TOKEN,
                "",
            ),
            "two sources": (words(corpora.two, tokenizer_dir="out"), TOKEN, nowhere),
            "no source": (words(""), TOKEN, nowhere),
            "results": (words(corpora.two, results="results.jsonl"), TOKEN, nowhere),
            "bad revision": (words(corpora.two, revision="main"), TOKEN, nowhere),
            "no corpus": (words(corpora.tokenizer), TOKEN, nowhere),
            "no repo_id": (words(corpora.two, ""), TOKEN, ""),
            "no license": (words(corpora.two, license=""), TOKEN, ""),
            "unknown license": (words(corpora.two, license="CC BY"), TOKEN, ""),
            "bad repo_id": (words(corpora.two, "someone/my comments"), TOKEN, ""),
            "no owner": (words(corpora.two, "comments"), TOKEN, nowhere),
            "unfinished": (words(corpora.unfinished), TOKEN, ""),
            "damaged": (words(corpora.damaged), TOKEN, ""),
            "nothing there": (words(corpora.two / "none"), TOKEN, ""),
            "no token": (words(corpora.two), "", ""),
            "stale token": (words(corpora.two, "someone/new"), "hf_stale", ""),
            "foreign": (words(corpora.two, "other/comments"), TOKEN, ""),
            "unreachable": (words(corpora.two), TOKEN, nowhere),
            "named": (words(corpora.named, "someone/named"), TOKEN, ""),
            "from the Hub": (words(pushed.directory / "again", "someone/derived"), TOKEN, ""),
            "no space": (words(corpora.two, "someone/large"), TOKEN, ""),
            "upload breaks off": (words(corpora.two, "someone/broken"), TOKEN, ""),
        }
        hub.full = ["/datasets/someone/large.git/", "/storage/someone/broken/"]
        client = run_client(RUN_RECIPE, str(RECIPE), json.dumps(runs), nowhere, hub=hub, directory=pushed.directory)
    results = {name: SimpleNamespace(**client.results[name]) for name in runs}
    main, commit = hub.find("datasets", REPO, "main")
    visitor = run_client(READ, REPO, pushed.commit, SENTENCE, hub=hub, directory=pushed.directory)
    return SimpleNamespace(
        results=results, files=contents(main), commit=commit, commits=list(hub.commits), client=client, visitor=visitor
    )


def test_the_corpus_its_card_and_its_manifest_are_one_commit(pushed):
    shards = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [commit["added"] for commit in pushed.commits] == [sorted([*CARD_FILES, *shards])]
    assert set(shards) < set(pushed.commits[0]["large"])
    assert set(pushed.files) == {".gitattributes", *CARD_FILES, *shards}


def test_the_shards_on_the_hub_are_those_of_the_corpus(pushed, corpora):
    local = contents(corpora.three)
    names = [name for name in pushed.files if name.endswith((".parquet", ".png", ".md"))]
    assert len(names) == 6 and all(pushed.files[name] == local[name] for name in names)
    assert json.loads(pushed.files["manifest.json"])["files"] == read_manifest(corpora.three)["files"]


def test_the_recipe_says_what_it_pushed_and_where(pushed):
    *files, total, last = [line.split("  ") for line in map(str.strip, pushed.stdout.splitlines())]
    assert [name for _, name in files] == pushed.commits[0]["added"]
    sizes = [len(pushed.files[name]) for _, name in files]
    assert [size for size, _ in files] == [f"{size:,}" for size in sizes]
    assert total == [f"{sum(sizes):,}", f"bytes in {len(files)} files"]
    assert last == [f"are at https://huggingface.co/datasets/{REPO}"]


def test_the_snippet_of_the_card_streams_exactly_the_rows_of_the_shards(pushed, corpora):
    columns, streamed = pushed.visitor.results["snippet"]
    expected = rows(corpora.three)
    assert len(expected) > 1000 and len(pq.read_table(corpora.three / "train-00000-of-00003.parquet")) < len(expected)
    assert columns == COLUMNS and streamed == expected


def test_a_pushed_corpus_is_read_like_any_other_source(pushed, corpora):
    comments, counts, has_parents = pushed.visitor.results["read"]
    assert comments == rows(corpora.three)
    assert counts == {"comments": len(comments)} and has_parents


def test_a_pushed_corpus_built_again_without_rules_is_the_same(pushed, corpora):
    manifest = pushed.visitor.results["build"]
    assert manifest["sources"] == [{"path": REPO, "revision": pushed.commit}]
    assert rows(pushed.directory / "again") == rows(corpora.three)


def test_a_new_commit_is_noticed_and_refused(later):
    message = later.visitor.results["build"]
    assert message.startswith("kcelectra.errors.InputError: again holds a corpus of something else")
    assert f"{REPO} has changed" in message and "give another --output_dir" in message


def test_an_old_commit_is_still_read_as_it_was(later, pushed, corpora):
    assert later.commit != pushed.commit
    assert later.visitor.results["read"][0] == rows(corpora.three)


# what is pushed tells nothing of the machine it came from


def test_no_path_of_this_machine_is_in_what_was_pushed(pushed, later, tmp_path_factory):
    private = [str(tmp_path_factory.getbasetemp()), str(Path(__file__).parents[1]), str(Path.home()) + "/", "원본"]
    for name, content in [*pushed.files.items(), *later.files.items()]:
        for path in private:
            assert path.encode() not in content, f"{path} in {name}"
            assert json.dumps(path)[1:-1].encode() not in content, f"{path} in {name}"
    assert not re.search(r'"(/|[A-Za-z]:\\\\)', pushed.files["manifest.json"].decode())


def test_the_sources_and_the_bad_rows_keep_the_names_of_their_files(pushed):
    manifest = json.loads(pushed.files["manifest.json"])
    assert [source["path"] for source in manifest["sources"]] == ["댓글 모음.jsonl", "news.csv"]
    assert [row for row in manifest["bad_rows"] if row.startswith("댓글 모음.jsonl, row 61: ")]


def test_a_name_in_another_or_with_quotation_marks_is_still_only_a_name(hub, later):
    assert later.results["named"].status == 0, later.results["named"].err
    manifest = read_manifest(hub.find("datasets", "someone/named", "main")[0])
    names = ["a.txt", "a.txt", '"b" \\.txt']
    assert [source["path"] for source in manifest["sources"]] == names
    assert manifest["bad_rows"] == [f"{name}, row 3: invalid UTF-8" for name in names]
    assert manifest["damaged_files"] == ["cannot read a.txt after row 9: [Errno 5] a.txt"]


def test_a_source_on_the_hub_keeps_its_name_and_commit(hub, pushed, later):
    main, _ = hub.find("datasets", "someone/derived", "main")
    assert read_manifest(main)["sources"] == [{"path": REPO, "revision": pushed.commit}]


def test_the_token_is_in_nothing_that_was_written_or_said(hub, pushed, later):
    for name, content in contents(hub.root).items():
        assert TOKEN.encode() not in content, name
    for result in later.results.values():
        assert TOKEN not in result.out + result.err
    assert TOKEN not in pushed.stdout + pushed.stderr + json.dumps(pushed.commits + later.commits)


def test_a_masked_phone_number_is_nowhere_on_the_hub(hub, pushed, corpora):
    assert sum("[PHONE]" in row["text"] for row in rows(corpora.three)) == 2
    assert not any(PHONE in row["text"] for row in rows(pushed.main))
    assert not any(PHONE.encode() in content for content in contents(hub.root).values())


def test_a_path_of_this_machine_leaves_and_an_id_of_the_hub_stays():
    facts = {"corpus_dir": "/corpus", "path": "someone/corpus", "notes": ["read from /corpus"]}
    assert _without_paths(facts) == {"corpus_dir": "corpus", "path": "someone/corpus", "notes": ["read from corpus"]}


# pushed again


def test_a_dry_run_lists_what_a_push_would_send_and_asks_the_hub_nothing(later):
    dry, real = (later.results[name] for name in ("dry run", "fewer shards"))
    assert dry.status == 0, dry.err  # its Hub cannot be reached
    assert dry.out.splitlines()[:-1] == real.out.splitlines()[:-1]
    assert "would be at" in dry.out.splitlines()[-1]


def test_the_same_corpus_again_makes_no_commit(later, pushed):
    assert later.results["same"].status == 0, later.results["same"].err
    assert later.commits[1]["deleted"]


def test_a_push_with_fewer_shards_removes_the_old_ones_in_the_same_commit(later, corpora):
    assert later.results["fewer shards"].status == 0, later.results["fewer shards"].err
    shards = [f"train-{i:05d}-of-00002.parquet" for i in range(2)]
    mine = [commit for commit in later.commits if commit["repository"] == REPO]
    assert mine[1]["deleted"] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert set(shards) < set(mine[1]["added"])
    assert {name for name in later.files if name.endswith(".parquet")} == set(shards)


def test_a_picture_that_only_lies_there_is_not_pushed(tmp_path):
    (tmp_path / "comments.txt").write_text("".join(f"이 영화 정말 재밌다 {i}\n" for i in range(20)), encoding="utf-8")
    build_corpus(str(tmp_path / "comments.txt"), tmp_path / "corpus", num_workers=1)
    (tmp_path / "corpus" / "plots").mkdir(exist_ok=True)
    (tmp_path / "corpus" / "plots" / "passport.png").write_bytes(b"\x89PNG")
    files = release_corpus(tmp_path / "corpus", repo_id="someone/comments", license="mit").files
    assert sorted(name for name in files if name.startswith("plots/")) == ["plots/lengths.png", "plots/rules.png"]


def test_a_private_dataset_is_created_private(hub, later):
    assert later.results["private"].status == 0, later.results["private"].err
    # and so are those whose push broke off, until it is done
    assert hub.private == {"someone/secret", "someone/broken", "someone/large"}


def test_without_public_a_dataset_that_is_public_is_refused_with_what_to_type(later):
    result = later.results["private now"]  # `create_repo(exist_ok=True)` leaves the visibility of what is there
    assert result.status == 2 and "is public" in result.err and "`--public true`" in result.err


def test_what_was_looked_at_in_private_is_shown_by_the_same_with_public(hub, later):
    for run in ("first private", "then public"):
        assert later.results[run].status == 0, later.results[run].err
    assert "someone/shown" not in hub.private


def test_a_revision_is_a_tag_that_goes_on_naming_what_it_named(hub, later, corpora):
    assert later.results["then public"].out.endswith("/datasets/someone/shown/tree/v1\n")
    other = later.results["other with its tag"]
    assert other.status == 2 and "main of someone/shown holds the files, and v1 others as before" in other.err
    again = later.results["first with its tag"]
    assert again.status == 2 and "v1 of someone/shown names another commit" in again.err
    (main, _), (tagged, _) = (hub.find("datasets", "someone/shown", revision) for revision in ("main", "v1"))
    assert rows(tagged) == rows(corpora.two) and len(list(tagged.glob("*.parquet"))) == 2
    assert len(list(main.glob("*.parquet"))) == 3


def test_a_pushed_tokenizer_loads_by_the_snippet_of_its_card(later, corpora):
    result = later.results["tokenizer"]
    assert result.status == 0, result.err
    assert later.visitor.results["tokenizer"] == [AutoTokenizer.from_pretrained(corpora.tokenizer).tokenize(SENTENCE)]
    card, manifest = later.visitor.results["card of the tokenizer"]
    assert "1,200 tokens" in card and manifest["sha256"] in card and "license: mit" in card
    assert manifest["settings"]["corpus"] == "원본.txt"  # the name of the file, without where it was


def test_the_card_of_an_extended_tokenizer_says_what_it_was_extended_from(corpora, tmp_path):
    extend_tokenizer(corpora.tokenizer / "vocab.txt", tmp_path / "extended", num_unused=3)
    card = release_tokenizer(tmp_path / "extended", repo_id="a/b", license="mit").files["README.md"].decode()
    words = " ".join(card.split())
    assert "1,203 tokens for Korean comments, cased, extended, without training, from one of 1,200 tokens. It" in words


@pytest.mark.parametrize("repository", ["large", "broken"])
def test_a_push_that_breaks_off_leaves_nothing_half_done(hub, later, repository):
    main, _ = hub.find("datasets", f"someone/{repository}", "main")
    assert set(contents(main)) == {".gitattributes"}


# bad input


@pytest.mark.parametrize(
    ("run", "messages"),
    [
        ("no repo_id", ["give --repo_id, such as --repo_id OWNER/NAME"]),
        ("no license", ["give --license, such as --license cc-by-sa-4.0"]),
        ("two sources", ["--corpus_dir and --tokenizer_dir to push; give exactly one of --run_dir, --corpus_dir"]),
        ("no source", ["nothing to push; give exactly one of --run_dir, --corpus_dir, --rows_dir, --tokenizer_dir"]),
        ("results", ["--results are the scores of a model; give --run_dir"]),
        ("bad revision", ["'main' is no name of a revision", "such as v2022"]),
        ("no corpus", ["holds no corpus but a tokenizer"]),
        ("bad repo_id", ["'someone/my comments'", "give OWNER/NAME"]),
        ("no owner", ["'comments' has no owner; give OWNER/NAME"]),
        ("unknown license", ['"license" must be one of', "--license"]),
        ("unfinished", ["unfinished has no manifest.json", "run it again"]),
        ("damaged", ["train-00001-of-00003.parquet is missing or not what manifest.json says", "run its stage again"]),
        ("nothing there", ["none does not exist; give the directory"]),
        ("no token", ["401", "hf auth login"]),
        ("stale token", ["401", "hf auth login"]),
        ("foreign", ["403", 'under the namespace "other"', "hf auth login"]),
        ("unreachable", ["cannot push to someone/comments", "Connection refused"]),
        ("no space", ["cannot push to someone/large", "Storage limit reached"]),
        ("upload breaks off", ["cannot push to someone/broken", "Storage limit"]),
    ],
)
def test_bad_input_is_named_with_what_to_type(later, run, messages):
    result = later.results[run]
    assert result.status == 2, result.err
    progress, _, error = f"\n{result.err}".partition("\nerror: ")
    assert error and "Traceback" not in progress
    assert all(message in error for message in messages), error


def test_a_source_on_a_hub_that_cannot_be_reached_is_named(later):
    message = later.client.results["read from nowhere"]
    assert message.startswith(f"kcelectra.errors.InputError: cannot open '{REPO}': ")


def test_nothing_that_was_refused_made_a_commit(hub, later):
    accepted = [commit["repository"].removeprefix("someone/") for commit in later.commits]
    assert accepted == ["comments"] * 2 + ["secret", "shown", "shown", "tokenizer", "named", "derived"]
    assert [path.name for path in (hub.root / "datasets").iterdir()] == ["someone"]


def test_no_request_leaves_for_another_host(hub, pushed, later):
    assert hub.unknown == []
    for client in (pushed.visitor, later.client, later.visitor):
        # the dataset viewer of this Hub, by a name that `datasets` makes of the endpoint; it does without
        assert set(client.elsewhere) <= {"datasets-server.127.0.0.1"}
