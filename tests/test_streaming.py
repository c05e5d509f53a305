"""Claims about the stream: every kept comment is in it once a pass, framed with its replies, in a seeded order."""

import json
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader

from kcelectra import clean, clean_batch
from kcelectra.corpus.comments import Comment, CommentReader, read_texts
from kcelectra.corpus.formats import READ_BATCH_SIZE
from kcelectra.errors import InputError
from kcelectra.pretraining.packing import frame_document
from kcelectra.pretraining.streaming import DocumentBuilder, PackedStream
from kcelectra.tokenization import load_tokenizer

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


def test_one_worker_gives_the_same_rows(rows, sample_file, tokenizer):
    loader = DataLoader(make_stream(sample_file, tokenizer), batch_size=None, num_workers=1)
    assert as_pairs(loader) == as_pairs(rows)


def test_two_workers_are_an_input_error(sample_file, tokenizer):
    iterator = iter(DataLoader(make_stream(sample_file, tokenizer), batch_size=None, num_workers=2))
    with pytest.raises(InputError, match="dataloader_num_workers is 2; give 0 or 1"):
        next(iterator)
    iterator._shutdown_workers()  # left to the garbage collector it takes 10 s (measured, torch 2.13)


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


# documents


def build_documents(comments: list[Comment], **options: bool) -> list[tuple[list[int], list[int]]]:
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


def test_neighbours_of_a_thread_are_paired_where_parents_are_not_known():
    comments = [Comment("", thread) for thread in ("a", "a", "a", "b", "b", None, None)]
    expected = [([0], [1]), ([2], []), ([3], [4]), ([5], []), ([6], [])]
    assert build_documents(comments, pair_neighbours=True) == expected


def test_a_thread_of_any_length_is_cut_and_loses_nothing(monkeypatch):
    monkeypatch.setattr("kcelectra.pretraining.streaming.MAX_OPEN_DOCUMENTS", 10)
    comments = [Comment("", "a", str(number), "0" if number % 7 == 6 else None) for number in range(100)]
    documents = build_documents(comments)
    assert sorted(number for comment, replies in documents for number in comment + replies) == list(range(100))
    assert documents[0] == ([0], [6])
