"""Claims about the stream: every kept comment is in it once a pass, framed with its replies, in a seeded order."""

import csv
import gzip
import json
import pickle
import random
import time
from collections import Counter
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import HubServer, run_client
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader

from kcelectra import DataCollatorForReplacedTokenDetection, clean, clean_batch
from kcelectra.corpus.comments import Comment, CommentReader, read_texts
from kcelectra.corpus.rows import READ_BATCH_SIZE
from kcelectra.errors import InputError
from kcelectra.pretraining.packing import Repeater, frame_document
from kcelectra.pretraining.prefetching import read_ahead
from kcelectra.pretraining.row_loader import RowLoader
from kcelectra.pretraining.streaming import DocumentBuilder, PackedStream
from kcelectra.tokenization import hash_tokenizer, load_tokenizer, save_tokenizer

PAD, CLS, SEP, MASK = 0, 2, 3, 4
MIN_CHARS = 10


def make_stream(path, tokenizer, *, max_length=64, num_passes=1, **options):
    return PackedStream(CommentReader(str(path)), tokenizer, max_length=max_length, num_passes=num_passes, **options)


def write_jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def ids_of(text, tokenizer):
    return tokenizer.convert_tokens_to_ids(tokenizer.tokenize(clean(text)))


def document_of(tokenizer, *texts):
    """Frame texts as the issue writes it: [CLS] a [SEP] b c [SEP]."""
    comment, *replies = (ids_of(text, tokenizer) for text in texts)
    return (CLS, *comment, SEP, *(token for reply in replies for token in reply), *([SEP] if replies else []))


def documents_of(rows):
    """Split rows at each [CLS], without their padding."""
    documents = []
    for row in rows:
        tokens = np.asarray(row["input_ids"])
        tokens = tokens[tokens != PAD]
        documents.extend(tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == CLS)[1:]))
    return documents


def content_of(rows):
    tokens = np.concatenate([np.asarray(row["input_ids"]) for row in rows])
    return Counter(tokens[~np.isin(tokens, (PAD, CLS, SEP))].tolist())


def as_pairs(rows):
    return [(row["row_id"], tuple(np.asarray(row["input_ids"]).tolist())) for row in rows]


def kept(comments):
    return [comment for comment in comments if len(clean(comment["text"])) >= MIN_CHARS]


@pytest.fixture(scope="module")
def rows(sample_file, tokenizer):
    return list(make_stream(sample_file, tokenizer))


def test_rows_are_input_ids_and_a_row_id(rows):
    for row in rows:
        assert row.keys() == {"input_ids", "row_id"}
        assert row["input_ids"].shape == (64,) and row["input_ids"].dtype == np.int32
        assert row["input_ids"][0] == CLS
        assert type(row["row_id"]) is int


def test_one_pass_loses_no_token_but_those_of_comments_too_short(rows, sample_comments, tokenizer):
    expected = Counter(token for comment in kept(sample_comments) for token in ids_of(comment["text"], tokenizer))
    assert content_of(rows) == expected


def test_one_pass_holds_each_comment_with_its_replies(rows, sample_comments, tokenizer):
    documents = {}
    for comment in kept(sample_comments):
        replies = documents.get(comment["parent_id"])
        ids = ids_of(comment["text"], tokenizer)
        if replies is None:
            documents[comment["comment_id"]] = (ids, [])
        else:
            replies[1].extend(ids)
    pieces = [
        tuple(piece)
        for comment, replies in documents.values()
        for piece in frame_document(comment, replies, max_length=64, cls_token_id=CLS, sep_token_id=SEP)
    ]
    assert Counter(documents_of(rows)) == Counter(pieces)


def test_counts_say_what_was_read_dropped_and_packed(sample_file, sample_comments, tokenizer):
    stream = make_stream(sample_file, tokenizer)
    rows = list(stream)
    assert stream.counts["comments"] == len(sample_comments)
    assert stream.counts["too short"] == len(sample_comments) - len(kept(sample_comments)) > 0
    assert stream.counts["rows"] == len(rows)
    assert stream.counts["tokens"] == sum(np.count_nonzero(row["input_ids"] != PAD) for row in rows)
    is_reply = {comment["comment_id"] for comment in kept(sample_comments)}.__contains__
    assert stream.counts["documents"] == sum(not is_reply(comment["parent_id"]) for comment in kept(sample_comments))


def test_comment_and_its_replies_are_one_document(tmp_path, tokenizer):
    texts = ["이 영화 진짜 재밌어요", "저도 그렇게 생각해요", "저는 결말이 아쉬웠어요", "오늘 날씨가 정말 좋네요"]
    comments = [
        {"comment_id": "1", "parent_id": None, "thread": "a", "text": texts[0]},
        {"comment_id": "2", "parent_id": "1", "thread": "a", "text": texts[1]},
        {"comment_id": "3", "parent_id": "1", "thread": "a", "text": texts[2]},
        {"comment_id": "4", "parent_id": None, "thread": "a", "text": texts[3]},
    ]
    rows = list(make_stream(write_jsonl(tmp_path / "replies.jsonl", comments), tokenizer, max_length=32))
    assert Counter(documents_of(rows)) == Counter(
        [document_of(tokenizer, *texts[:3]), document_of(tokenizer, texts[3])]
    )


def test_reply_is_kept_when_its_comment_was_dropped(tmp_path, tokenizer):
    texts = ["이 영화 진짜 재밌어요", "굿", "저는 결말이 아쉬웠어요", "저도 그렇게 생각해요 정말로"]
    comments = [
        {"comment_id": "1", "parent_id": None, "thread": "a", "text": texts[0]},
        {"comment_id": "2", "parent_id": None, "thread": "a", "text": texts[1]},
        {"comment_id": "3", "parent_id": "2", "thread": "a", "text": texts[2]},
        {"comment_id": "4", "parent_id": "2", "thread": "a", "text": texts[3]},
    ]
    stream = make_stream(write_jsonl(tmp_path / "dropped.jsonl", comments), tokenizer, max_length=24)
    expected = [document_of(tokenizer, texts[i]) for i in (0, 2, 3)]  # and never as replies to the first comment
    assert Counter(documents_of(stream)) == Counter(expected)
    assert stream.counts["too short"] == 1


def test_reply_in_the_next_batch_of_the_reader_joins_its_comment(tmp_path, tokenizer):
    text = "{} 번째로 쓴 댓글입니다"
    comments = [
        {"comment_id": str(i), "parent_id": None, "thread": "a", "text": text.format(i)}
        for i in range(READ_BATCH_SIZE + 1)
    ]
    comments[-1]["parent_id"] = comments[-2]["comment_id"]
    documents = documents_of(make_stream(write_jsonl(tmp_path / "batches.jsonl", comments), tokenizer))
    pair = document_of(tokenizer, text.format(READ_BATCH_SIZE - 1), text.format(READ_BATCH_SIZE))
    assert documents.count(pair) == 1 and len(documents) == READ_BATCH_SIZE


def test_neighbours_of_a_thread_are_paired_where_the_source_knows_no_parents(tmp_path, tokenizer):
    texts = [f"{i} 번째로 쓴 댓글입니다" for i in range(6)]
    threads = ["a", "a", "a", "b", "c", "c"]
    comments = [{"thread": thread, "text": text} for thread, text in zip(threads, texts, strict=True)]
    stream = make_stream(write_jsonl(tmp_path / "threads.jsonl", comments), tokenizer, max_length=32)
    expected = [texts[0:2], texts[2:3], texts[3:4], texts[4:6]]
    assert Counter(documents_of(stream)) == Counter(document_of(tokenizer, *group) for group in expected)


def test_text_file_gives_single_comments(tmp_path, tokenizer):
    texts = [f"{i} 번째로 쓴 댓글입니다" for i in range(6)]
    path = tmp_path / "comments.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    documents = documents_of(make_stream(path, tokenizer, max_length=32))
    assert Counter(documents) == Counter(document_of(tokenizer, text) for text in texts)


def test_comment_that_names_special_tokens_does_not_make_any(tmp_path, tokenizer):
    path = tmp_path / "injection.txt"
    path.write_text("제목 [SEP] 본문 [MASK] 그리고 [CLS] 다시 [PAD] 끝\n" * 3, encoding="utf-8")
    documents = documents_of(make_stream(path, tokenizer))
    assert len(documents) == 3
    for document in documents:
        assert not {PAD, CLS, SEP, MASK}.intersection(document[1:-1])
        assert document.count(tokenizer.get_vocab()["["]) == 4  # read as the text that it is


def test_comment_longer_than_the_tokenizer_allows_is_cut_into_documents_not_truncated(tmp_path, tokenizer):
    text = "정말 길고 긴 댓글입니다 " * 300
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    ids = ids_of(text, tokenizer)
    assert len(ids) > tokenizer.model_max_length
    assert content_of(list(make_stream(path, tokenizer))) == Counter(ids)


def test_order_is_the_same_for_two_runs_and_another_for_another_seed(rows, sample_file, tokenizer):
    assert as_pairs(make_stream(sample_file, tokenizer)) == as_pairs(rows)
    others = as_pairs(make_stream(sample_file, tokenizer, seed=1))
    assert others != as_pairs(rows)
    assert sorted(others) == sorted(as_pairs(rows))


def test_stream_can_be_read_again_from_the_beginning(rows, sample_file, tokenizer):
    stream = make_stream(sample_file, tokenizer)
    list(islice(stream, 3))
    assert as_pairs(stream) == as_pairs(rows)


def test_rows_are_shuffled_inside_their_window_only(sample_file, tokenizer):
    row_ids = [row["row_id"] for row in make_stream(sample_file, tokenizer, shuffle_window=50)]
    assert row_ids != sorted(row_ids)
    for start in range(0, len(row_ids), 50):
        window = row_ids[start : start + 50]
        assert sorted(window) == list(range(start, start + len(window)))


def test_each_pass_holds_the_same_documents_under_new_row_ids(rows, sample_file, tokenizer):
    passes = list(make_stream(sample_file, tokenizer, num_passes=3))
    assert len(passes) == 3 * len(rows)
    assert len({row["row_id"] for row in passes}) == len(passes)
    orders = []
    for start in range(0, len(passes), len(rows)):
        one_pass = passes[start : start + len(rows)]
        assert Counter(documents_of(one_pass)) == Counter(documents_of(rows))
        orders.append([row["row_id"] - start for row in one_pass])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_stream_has_no_end_without_num_passes(rows, sample_file, tokenizer):
    stream = make_stream(sample_file, tokenizer, num_passes=None)
    row_ids = {row["row_id"] for row in islice(stream, 2 * len(rows) + 1)}
    assert len(row_ids) == 2 * len(rows) + 1


@pytest.mark.parametrize("text", ["", "짧은 댓글 하나뿐입니다\n", "굿\n최고\n"])
def test_corpus_shorter_than_one_row_is_an_input_error_that_names_the_cure(tmp_path, tokenizer, text):
    path = tmp_path / "short.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"short\.txt.* less than one row of 512; .*lower --max_length"):
        list(make_stream(path, tokenizer, max_length=512))


def test_half_a_surrogate_pair_in_text_that_is_not_cleaned_costs_no_row(tokenizer, tmp_path):
    path, rows = tmp_path / "comments.jsonl", []
    for half in ("\ud83d", "?"):
        path.write_text(f"{json.dumps({'text': f'반쪽 {half} 이모지가 있는 댓글'})}\n" * 30)
        rows.append([[*row["input_ids"]] for row in make_stream(path, tokenizer, rules="none")])
    assert rows[0] == rows[1] != []


def test_one_worker_gives_the_same_rows(rows, sample_file, tokenizer):
    loader = DataLoader(make_stream(sample_file, tokenizer), batch_size=None, num_workers=1)
    assert as_pairs(loader) == as_pairs(rows)


def test_two_workers_are_an_input_error(sample_file, tokenizer):
    iterator = iter(DataLoader(make_stream(sample_file, tokenizer), batch_size=None, num_workers=2))
    with pytest.raises(InputError, match="dataloader_num_workers is 2; give 0 or 1"):
        next(iterator)
    iterator._shutdown_workers()  # left to the garbage collector it takes 10 s (measured, torch 2.13)


def test_a_stream_that_was_sent_to_another_process_gives_the_same_rows(tmp_path, tokenizer):
    path = tmp_path / "comments.txt"
    path.write_text("제목 [SEP] 본문 [MASK] 그리고 [CLS] 다시 [PAD] 끝\n" * 20, encoding="utf-8")
    stream = make_stream(path, tokenizer)
    list(stream)
    assert as_pairs(pickle.loads(pickle.dumps(stream))) == as_pairs(stream)


def test_unknown_rules_are_refused_at_construction(sample_file, tokenizer):
    with pytest.raises(ValueError, match="unknown rule set 'v2023'; use one of v2022, v2021, corpus, none"):
        make_stream(sample_file, tokenizer, rules="v2023")


def test_tokenizer_is_trained_on_what_the_stream_holds(sample_file, sample_comments):
    texts = read_texts(CommentReader(str(sample_file)), rules="v2022", min_chars=MIN_CHARS)
    assert list(texts) == [clean(comment["text"]) for comment in kept(sample_comments)]


@pytest.mark.parametrize("name", ["naver_news", "youtube"])
def test_real_comments_lose_no_token_and_fill_98_percent(shared_data, name):
    vocabulary = shared_data / "vocab" / "kcelectra_v2021_vocab.txt"
    reader = CommentReader(str(shared_data / "comments" / f"{name}.parquet"))
    stream = PackedStream(reader, load_tokenizer(vocabulary), max_length=128, rules="v2021", num_passes=1)
    rows = list(stream)

    comments = [comment.text for batch in reader for comment in batch]
    texts = [text for text in clean_batch(comments, "v2021") if len(text) >= MIN_CHARS]
    oracle = BertWordPieceTokenizer(str(vocabulary), lowercase=False, strip_accents=False)
    expected = Counter(
        token for encoding in oracle.encode_batch(texts, add_special_tokens=False) for token in encoding.ids
    )
    assert content_of(rows) == expected
    assert stream.counts["too short"] == len(comments) - len(texts)
    assert stream.counts["tokens"] / (len(rows) * 128) > 0.98


@pytest.mark.parametrize(
    "setting", [{"truncation": True, "max_length": 4}, {"padding": "max_length", "max_length": 300}]
)
def test_what_a_call_of_the_tokenizer_leaves_behind_changes_nothing(rows, sample_file, tokenizer, setting):
    tokenizer("댓글", **setting)
    stream = make_stream(sample_file, tokenizer)
    assert as_pairs(stream) == as_pairs(rows)
    tokenizer("댓글", **setting)
    assert as_pairs(stream) == as_pairs(rows)


# resume

NUM_COMMENTS = 240


@pytest.fixture
def small_pieces(monkeypatch):
    """Let a few comments go through everything many times: parts, batches, and documents that are kept back."""
    monkeypatch.setattr("kcelectra.corpus.comments.PART_BYTES", 8000)
    monkeypatch.setattr("kcelectra.corpus.lines.READ_BYTES", 3000)
    monkeypatch.setattr("kcelectra.corpus.rows.READ_BATCH_SIZE", 37)
    monkeypatch.setattr("kcelectra.pretraining.packing.NUM_PENDING", 20)


def write_lines(path, comments):
    path.write_text("".join(" ".join(comment["text"].split()) + "\n" for comment in comments), encoding="utf-8")


def write_csv(path, comments):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, comments[0].keys())
        writer.writeheader()
        writer.writerows(comments)


def write_parquet(path, comments):
    pq.write_table(pa.Table.from_pylist(comments), path, row_group_size=29)


def write_mixed(path, comments):
    """Write files that know parents and files that do not, and some bad rows."""
    path.mkdir()
    third = len(comments) // 3
    write_lines(path / "a.txt", comments[:third])
    write_jsonl(path / "b.jsonl", [*comments[third : 2 * third], {"no": "text"}])
    write_parquet(path / "c.parquet", comments[2 * third :])
    (path / "d.jsonl").write_text("no JSON\n" * 5)


def write_gzip(path, comments):
    lines = "".join(json.dumps(comment) + "\n" for comment in comments)
    path.write_bytes(gzip.compress(lines.encode()))


SOURCES = {
    "lines.txt": write_lines,
    "replies.jsonl": write_jsonl,
    "threads.jsonl": lambda path, rows: write_jsonl(path, [{k: row[k] for k in ("text", "thread")} for row in rows]),
    "one_thread.jsonl": lambda path, rows: write_jsonl(path, [{**row, "thread": "a"} for row in rows]),
    "replies.parquet": write_parquet,
    "replies.jsonl.gz": write_gzip,
    "replies.csv": write_csv,
    "mixed": write_mixed,
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, sample_comments, small_pieces):
    path = tmp_path / request.param
    SOURCES[request.param](path, sample_comments[:NUM_COMMENTS])
    return path


def go_on(stream, num_rows, resumed):
    """Resume a new stream from the state of another one, as it comes out of a checkpoint."""
    resumed.resume(json.loads(json.dumps(stream.state_at(num_rows))))
    return resumed


@pytest.mark.parametrize("window", [1, 13, 10_000])
def test_rows_before_any_cut_and_after_a_resume_are_those_of_one_run(source, tokenizer, window):
    def make():
        return make_stream(source, tokenizer, max_length=32, shuffle_window=window, num_passes=2)

    one_run = make()
    whole = as_pairs(one_run)
    draw = random.Random(f"{source.name} {window}")
    for cut in {0, *draw.sample(range(len(whole)), 3), min(window, len(whole) // 2), len(whole)}:
        stream = make()
        before = as_pairs(islice(stream, cut))
        resumed = go_on(stream, cut, make())
        assert before + as_pairs(resumed) == whole, cut
        assert resumed.counts == one_run.counts
        assert resumed.reader.counts == one_run.reader.counts


def test_a_stream_that_is_resumed_again_and_again_is_one_run(source, tokenizer):
    def make():
        return make_stream(source, tokenizer, max_length=32, shuffle_window=9, num_passes=2, repeat_probability=0.4)

    stream, rows, whole = make(), [], as_pairs(make())
    draw = random.Random(source.name)
    while len(rows) < len(whole):
        taken = as_pairs(islice(stream, draw.choice([0, 1, 5, 9, 40, 60])))
        rows += taken
        stream = go_on(stream, len(taken), make())
    assert rows == whole
    assert as_pairs(stream) == []


def test_a_state_is_of_the_rows_that_were_taken_not_of_those_that_a_thread_has_read(source, tokenizer):
    def make():
        return make_stream(source, tokenizer, max_length=32, shuffle_window=5, num_passes=3)

    whole = as_pairs(make())
    stream = make()
    ahead, rows = read_ahead(stream, len(whole) // 4), []
    for number in range(1, len(whole) // 2):
        rows += as_pairs([next(ahead)])
        while stream.counts["rows"] < number + len(whole) // 4:
            time.sleep(0.001)
        if number in (1, len(whole) // 3, len(whole) // 2 - 1):
            assert rows + as_pairs(go_on(stream, number, make())) == whole
    ahead.close()


def test_every_iteration_of_a_resumed_stream_begins_at_the_state(rows, sample_file, tokenizer):
    stream = make_stream(sample_file, tokenizer, shuffle_window=16)
    list(islice(stream, 40))
    stream.resume(stream.state_at(40))
    for _ in range(2):
        iterator = iter(stream)
        assert stream.state_at(0)["row"] == 40  # before the first row, whatever an earlier iteration has read
        assert as_pairs(iterator) == as_pairs(make_stream(sample_file, tokenizer, shuffle_window=16))[40:]


def test_a_resume_reads_no_more_than_a_window_and_a_batch_again(tmp_path, tokenizer, sample_comments, small_pieces):
    path = tmp_path / "comments.txt"
    write_lines(path, sample_comments)
    window = 16

    def make():
        return make_stream(path, tokenizer, max_length=32, shuffle_window=window)

    most, num_rows = 0, len(list(make()))
    for cut in range(0, num_rows, num_rows // 10):
        stream = make()
        list(islice(stream, cut))
        num_comments, resumed = stream.counts["comments"], go_on(stream, cut, make())
        state = resumed.state_at(0)
        assert state["row"] - state["window_row"] <= window
        next(iter(resumed), None)
        assert resumed.counts["comments"] <= num_comments + 100
        most = max(most, resumed.counts["comments"] - state["counts"].get("comments", 0))
    per_row = stream.counts["comments"] / num_rows
    assert most <= 3 * window * per_row + 100, (most, per_row)  # a batch is of 3000 bytes, about 60 comments


def test_a_state_of_what_was_not_generated_or_is_long_forgotten_is_refused(sample_file, tokenizer, monkeypatch):
    monkeypatch.setattr("kcelectra.pretraining.streaming.MAX_READ_AHEAD", 50)
    stream = make_stream(sample_file, tokenizer, shuffle_window=10)
    assert stream.state_at(0)["row"] == 0
    with pytest.raises(ValueError, match="after 1 rows, when 0 were generated"):
        stream.state_at(1)
    list(islice(stream, 200))
    assert [stream.state_at(number)["row"] for number in (150, 200, 150)] == [150, 200, 150]
    for number in (130, 201):
        with pytest.raises(ValueError, match=f"after {number} rows, when 200 were generated"):
            stream.state_at(number)
    assert len(stream._windows) <= 50 / 10 + 2


def test_a_stream_remembers_as_far_as_many_processes_read_ahead(sample_file, tokenizer, monkeypatch):
    monkeypatch.setattr("kcelectra.pretraining.streaming.MAX_READ_AHEAD", 50)
    stream = make_stream(sample_file, tokenizer, shuffle_window=10)
    RowLoader(stream, DataCollatorForReplacedTokenDetection(tokenizer), batch_size=8, num_processes=4)
    list(islice(stream, 300))
    assert stream.state_at(300 - 5 * 32)["row"] == 300 - 5 * 32


@pytest.mark.parametrize("state", [{}, {"position": 7}, "renamed", "another version"])
def test_a_state_of_another_shape_is_an_input_error_that_names_the_cure(sample_file, tokenizer, state):
    stream = make_stream(sample_file, tokenizer)
    good = stream.state_at(0)
    if state == "renamed":
        state = {"rows" if key == "row" else key: value for key, value in good.items()}
    elif state == "another version":
        state = {**good, "version": 0}
    with pytest.raises(InputError, match=r"no state of a stream of comments.*; continue .* or begin another"):
        stream.resume(state)
    stream.resume(good)


@pytest.mark.parametrize("num_left", [2, 60, 95])
@pytest.mark.parametrize("window", [5, 4096])
def test_a_source_that_has_become_shorter_is_an_input_error_that_names_the_cure(
    tmp_path, tokenizer, sample_comments, small_pieces, num_left, window
):
    path = tmp_path / "comments.txt"
    write_lines(path, sample_comments[:100])
    stream = make_stream(path, tokenizer, max_length=32, shuffle_window=window)
    num_rows = len(list(stream))
    state = stream.state_at(num_rows - 1)
    write_lines(path, sample_comments[:num_left])
    resumed = make_stream(path, tokenizer, max_length=32, shuffle_window=window)
    resumed.resume(state)
    with pytest.raises(InputError, match=r"comments\.txt .*changed.*; put it back as it was, or begin a"):
        list(resumed)


def test_a_fingerprint_tells_streams_of_other_rows_apart(tmp_path, sample_file, tokenizer):
    print_of = make_stream(sample_file, tokenizer).fingerprint
    assert json.loads(json.dumps(print_of)) == print_of
    assert make_stream(sample_file, tokenizer, num_passes=7).fingerprint == print_of
    assert print_of["tokenizer_sha256"] == hash_tokenizer(tokenizer)
    assert print_of["source"] == CommentReader(str(sample_file)).fingerprint()
    settings = {"max_length": 32, "rules": "v2021", "min_chars": 3, "seed": 1, "shuffle_window": 2}
    for name, value in (settings | {"fill_documents": True, "repeat_probability": 0.5}).items():
        assert make_stream(sample_file, tokenizer, **{name: value}).fingerprint != print_of
    save_tokenizer(tokenizer, tmp_path)
    assert make_stream(sample_file, load_tokenizer(tmp_path)).fingerprint == print_of
    vocabulary = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary[-2], vocabulary[-3] = vocabulary[-3], vocabulary[-2]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    assert make_stream(sample_file, load_tokenizer(tmp_path / "vocab.txt")).fingerprint != print_of


RESUME_FROM_HUB = """
import random
from itertools import islice
from kcelectra.corpus import comments
from kcelectra.pretraining import packing
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.tokenization import load_tokenizer

comments.READ_BATCH_SIZE, packing.NUM_PENDING = 37, 20
tokenizer = load_tokenizer(sys.argv[1])

def make(name):
    return PackedStream(comments.CommentReader(name), tokenizer, max_length=32, shuffle_window=11, num_passes=2)

def take(stream, number=None):
    return [(row["row_id"], row["input_ids"].tolist()) for row in islice(stream, number)]

def resume(name):
    draw, whole = random.Random(name), take(make(name))
    stream, rows = make(name), []
    for number in (draw.randrange(len(whole)), draw.randrange(40), draw.randrange(40), None):
        rows += (taken := take(stream, number))
        state = json.loads(json.dumps(stream.state_at(len(taken))))
        stream = make(name)
        stream.resume(state)
    return len(whole), rows == whole

def read(position=None):
    batches = comments.CommentReader("someone/text").read(position)
    return [[position, [comment.text for comment in batch]] for position, batch in batches]

for name in ("someone/parquet", "someone/jsonl", "someone/text"):
    attempt(name, lambda: resume(name))
attempt("batches", read)
attempt("last batches", lambda: read(results["batches"][3][0]))
attempt("local place", lambda: read({**results["batches"][3][0], "place": comments.START}))
attempt("print", lambda: comments.CommentReader("someone/text").fingerprint())
attempt("old print", lambda: comments.CommentReader("someone/text", revision="old").fingerprint())
"""


def test_streams_from_the_hub_are_resumed_exactly_twice_too(tmp_path, sample_comments, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    root = tmp_path / "hub" / "datasets" / "someone"
    writers = {"parquet": write_parquet, "jsonl": write_jsonl, "text": write_lines}
    for name, write in writers.items():
        for revision in ("main", "old"):
            (root / name / revision).mkdir(parents=True)
        for number in range(3):  # files of unequal length
            part = sample_comments[number * 150 : number * 150 + (150, 1, 110)[number]]
            write(root / name / "main" / f"train-{number}.{'txt' if name == 'text' else name}", part)
    write_lines(root / "text" / "old" / "train-0.txt", sample_comments[:50])
    with HubServer(tmp_path / "hub") as hub:
        seen = run_client(RESUME_FROM_HUB, str(tmp_path / "tokenizer"), hub=hub, directory=tmp_path)
    assert seen.unknown == [] and set(seen.elsewhere) <= {"datasets-server.127.0.0.1"}
    for name in writers:
        num_rows, is_equal = seen.results[f"someone/{name}"]
        assert is_equal and num_rows > 300
    batches, last = seen.results["batches"], seen.results["last batches"]
    sizes = [len(texts) for _, texts in batches]
    assert [position["place"]["row"] for position, _ in batches] == [sum(sizes[:i]) for i in range(len(sizes))]
    whole, again = ([(place["place"]["row"], texts) for place, texts in read] for read in (batches, last))
    assert again == whole[3:] and len(again) > 1
    assert "someone/text has no place" in seen.results["local place"]
    assert seen.results["print"]["dataset"] == "someone/text"
    assert len(seen.results["print"]["commit"]) == 40
    assert seen.results["print"]["commit"] != seen.results["old print"]["commit"]


# documents


def build_documents(comments: list[Comment], **options) -> list[tuple[list[int], list[int]]]:
    """Documents, each comment standing for itself as its number."""
    builder = DocumentBuilder(**options)
    added = chain.from_iterable(builder.add(comment, [number]) for number, comment in enumerate(comments))
    return [*added, *builder.flush()]


def test_a_comment_and_the_replies_to_it_become_one_document_wherever_they_stand_in_their_thread():
    comments = [
        Comment("", "a", "1", None),
        Comment("", "a", "2", "2"),  # its own parent: a portal's way to say that it has none
        Comment("", "a", "3", "1"),
        Comment("", "a", "4", "2"),
        Comment("", "a", "5", "3"),  # a reply to a reply
        Comment("", "b", "6", "1"),  # that is another thread's
        Comment("", "b", None, "6"),
    ]
    assert build_documents(comments) == [([0], [2, 4]), ([1], [3]), ([5], [6])]


def test_a_reply_to_what_is_not_there_is_a_document_of_its_own():
    assert build_documents([Comment("", "a", "1", "0"), Comment("", "a", "2", None)]) == [([0], []), ([1], [])]


def test_replies_find_their_comment_where_threads_are_not_known():
    comments = [
        Comment("", None, "1", None),
        Comment("", None, None, None),  # which nothing can join, but which stands behind what something may join
        Comment("", None, None, "1"),
        Comment("", None, "2", "1"),
    ]
    assert build_documents(comments) == [([0], [2, 3]), ([1], [])]


def test_a_comment_that_nothing_can_join_is_a_document_at_once():
    builder = DocumentBuilder()
    assert [*builder.add(Comment("", None, None, None), [7])] == [([7], [])]
    assert builder.state == DocumentBuilder().state


def test_neighbours_of_a_thread_are_paired_where_parents_are_not_known():
    comments = [Comment("", thread) for thread in ("a", "a", "a", "b", "b", None, None)]
    expected = [([0], [1]), ([2], []), ([3], [4]), ([5], []), ([6], [])]
    assert build_documents(comments, pair_neighbours=True) == expected


def test_a_filled_document_holds_the_comments_of_a_thread_in_their_order_and_cuts_the_last():
    comments = [Comment("", "a", str(number), "0") for number in range(3)] + [Comment("", "b")] + 3 * [Comment("")]
    builder = DocumentBuilder(fill=5)
    added = chain.from_iterable(builder.add(comment, 4 * [number]) for number, comment in enumerate(comments))
    assert [*added, *builder.flush()] == [
        ([0, 0, 0, 0], [1]),
        ([1, 1, 1], [2, 2]),
        ([2, 2], []),
        ([3, 3, 3, 3], []),  # another thread
        ([4, 4, 4, 4], [5]),  # no thread is one, too
        ([5, 5, 5], [6, 6]),
        ([6, 6], []),
    ]


def test_filled_documents_are_as_long_as_rows_and_hold_the_same_tokens(sample_file, tokenizer):
    streams = [make_stream(sample_file, tokenizer, fill_documents=fill) for fill in (False, True)]
    rows = [np.concatenate([row["input_ids"] for row in stream]) for stream in streams]
    assert np.array_equal(*(np.sort(ids[ids > MASK]) for ids in rows))
    lengths = [stream.counts["tokens"] / stream.counts["documents"] for stream in streams]
    assert lengths[0] < 40 < 50 < lengths[1] <= 64


def test_a_repeated_document_is_each_of_its_comments_beside_itself_less_some_words():
    tokens = ["[PAD]", *(f"{'##' * (number % 3 == 2)}{number}" for number in range(1, 400))]
    comment, replies = list(range(1, 200)), list(range(200, 400))
    repeater = Repeater(1, tokens=tokens, seed=3)
    orders = set()
    for number in range(20):
        pairs = list(repeater.repeat(comment, replies, number))
        assert pairs == list(repeater.repeat(comment, replies, number))
        for ids, (one, other) in zip((comment, replies), pairs, strict=True):
            whole, rest = (one, other) if len(one) > len(other) else (other, one)
            orders.add(whole is one)
            assert whole == ids
            assert rest == [token_id for token_id in ids if token_id in rest]  # in their order
            assert 0.7 < len(rest) / len(ids) < 0.97
            continued = [token_id for token_id in ids if tokens[token_id].startswith("##") and token_id - 1 in ids]
            assert all((token_id in rest) == (token_id - 1 in rest) for token_id in continued)  # whole words
    assert orders == {True, False}
    assert [*repeater.repeat([7], [], 0)] == [([7], [7])]  # never an empty text
    assert [*repeater.repeat(comment, [], 0)] != [*repeater.repeat(comment, [], 1)]
    assert [*repeater.repeat(comment, [], 0)] != [*Repeater(1, tokens=tokens, seed=4).repeat(comment, [], 0)]


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_as_many_documents_are_repeated_as_was_asked_for(sample_file, tokenizer, probability):
    plain, repeated = (make_stream(sample_file, tokenizer, repeat_probability=p) for p in (0, probability))
    num_documents = [Counter(documents_of(stream)) for stream in (plain, repeated)]
    share = (num_documents[0] & num_documents[1]).total() / num_documents[0].total()
    assert share == pytest.approx(1 - probability, abs=0.05)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_share_of_repeated_documents_that_is_none_is_refused(sample_file, tokenizer, probability):
    with pytest.raises(InputError, match=r"repeat_probability is .*; give a share from 0 to 1, such as 0\.5"):
        make_stream(sample_file, tokenizer, repeat_probability=probability)


def test_a_thread_of_any_length_is_cut_and_loses_nothing(monkeypatch):
    monkeypatch.setattr("kcelectra.pretraining.streaming.MAX_OPEN_DOCUMENTS", 10)
    comments = [Comment("", "a", str(number), "0" if number % 7 == 6 else None) for number in range(100)]
    documents = build_documents(comments)
    assert sorted(number for comment, replies in documents for number in comment + replies) == list(range(100))
    assert documents[0] == ([0], [6])


@pytest.mark.parametrize("options", [{}, {"pair_neighbours": True}, {"fill": 7}])
@pytest.mark.parametrize("cut", range(0, 100, 9))
def test_a_builder_goes_on_where_another_one_was(monkeypatch, options, cut):
    monkeypatch.setattr("kcelectra.pretraining.streaming.MAX_OPEN_DOCUMENTS", 30)
    draw = random.Random(cut)
    comments = [
        Comment("", str(number // 40), str(number), str(draw.randrange(number + 1)) if draw.random() < 0.6 else None)
        for number in range(100)
    ]

    def build(builder, first, last):
        return [*chain.from_iterable(builder.add(comments[i], [i]) for i in range(first, last))]

    whole = build_documents(comments, **options)
    builder = DocumentBuilder(**options)
    before, state = build(builder, 0, cut), builder.state
    kept = json.dumps(state)
    build(builder, cut, 100)
    assert json.dumps(state) == kept  # whatever the builder does after it
    for _ in range(2):  # nor does a builder that goes on from it change it
        resumed = DocumentBuilder(**options, state=state)
        assert [*before, *build(resumed, cut, 100), *resumed.flush()] == whole
