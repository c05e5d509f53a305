"""Exact dedup against plain Python, on small corpora that repeat themselves, and within a stated memory."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kcelectra.corpus.dedup import DROPPED, KEY_SCHEMA, POSITION_BITS, SCOPES, find_dropped, hash_texts
from kcelectra.corpus.shards import TEXT_SCHEMA
from kcelectra.errors import InputError

MIN_CHARS = 3
LONG, OTHER, SHORT = "재밌어요", "별로예요", "굿"
PROPERTY = settings(max_examples=80, deadline=None, database=None, derandomize=True)


@dataclass(frozen=True)
class Comment:
    text: str
    thread: str | None = None
    comment_id: str | None = None
    parent_id: str | None = None


# the oracle


def choose_kept(comments: list[Comment], scope: str) -> tuple[list[int], int]:
    """Which comments are kept, and how many of them for their replies; from the docstrings of `dedup` alone."""
    kept, seen = set(), set()
    for row, comment in enumerate(comments):
        key = {"global": comment.text, "thread": (comment.text, comment.thread or ""), "none": row}[scope]
        if len(comment.text) >= MIN_CHARS and key not in seen:
            kept.add(row)
            seen.add(key)
    num_first = len(kept)
    waiting = sorted(kept)
    while waiting:
        comment = comments[waiting.pop()]
        if comment.parent_id is None or comment.parent_id == comment.comment_id:
            continue
        parents = [
            row
            for row, other in enumerate(comments)
            if other.comment_id == comment.parent_id and (other.thread or "") == (comment.thread or "")
        ]
        if parents and kept.isdisjoint(parents):
            kept.add(parents[0])
            waiting.append(parents[0])
    return sorted(kept), len(kept) - num_first


# ours


def write_part(directory: Path, part: int, comments: list[Comment], scope: str, *, group_rows: int = 8000) -> None:
    texts = [comment.text for comment in comments]
    hashes = hash_texts(texts, [comment.thread for comment in comments] if scope == "thread" else None)
    position = np.arange(len(comments)) + (part << POSITION_BITS)
    keys = {
        "position": position,
        "high": hashes[:, 0],
        "low": hashes[:, 1],
        "num_bytes": [len(text.encode()) for text in texts],
        "is_short": [len(text) < MIN_CHARS for text in texts],
    }
    columns = {name: [getattr(comment, name) for comment in comments] for name in TEXT_SCHEMA.names[1:]}
    for kind, values, schema in (("keys", keys, KEY_SCHEMA), ("cleaned", columns, TEXT_SCHEMA)):
        (directory / kind).mkdir(exist_ok=True)
        table = pa.table({"position": position, **values}, schema=schema)
        pq.write_table(table, directory / kind / f"{part:06d}.parquet", row_group_size=group_rows)


def write_parts(directory: Path, parts: list[list[Comment]], scope: str) -> Path:
    for part, comments in enumerate(parts):
        write_part(directory, part, comments, scope)
    return directory


def read_dropped(directory: Path) -> list[int]:
    return pq.read_table(directory / DROPPED)["position"].to_pylist()


def dedup(directory: Path, scope: str = "global", *, memory_mb: int = 256, has_parents: bool = True) -> tuple:
    limit = f"{memory_mb}MiB"
    return find_dropped(directory, has_parents=has_parents, scope=scope, memory_limit=limit, num_threads=2)


def kept_of(parts: list[list[Comment]], scope: str = "global") -> tuple[list[int], dict[str, int], int]:
    """Which comments are kept, counted through the parts, and the counts."""
    with tempfile.TemporaryDirectory() as name:
        directory = write_parts(Path(name), parts, scope)
        counts, num_rescued = dedup(directory, scope, has_parents=any(c.parent_id for part in parts for c in part))
        dropped = read_dropped(directory)
    assert dropped == sorted(set(dropped))
    positions = [(part << POSITION_BITS) + row for part, comments in enumerate(parts) for row in range(len(comments))]
    assert set(dropped) <= set(positions)
    return [row for row, position in enumerate(positions) if position not in set(dropped)], counts, num_rescued


def cut(comments: list, cuts: list[int]) -> list[list]:
    edges = [0, *sorted(min(edge, len(comments)) for edge in cuts), len(comments)]
    return [comments[start:stop] for start, stop in pairwise(edges)]


# hashes


keys = st.lists(st.tuples(st.text("가나a\0", max_size=3), st.text("가나a\0", max_size=3)), max_size=30)


@PROPERTY
@given(keys)
def test_two_texts_are_equal_if_and_only_if_their_hashes_are(keys):
    for values, hashes in (
        ([text for text, _ in keys], hash_texts([text for text, _ in keys])),
        (keys, hash_texts([text for text, _ in keys], [scope for _, scope in keys])),
    ):
        assert hashes.shape == (len(keys), 2) and hashes.dtype == np.uint64
        for value, one in zip(values, hashes.tolist(), strict=True):
            for other, another in zip(values, hashes.tolist(), strict=True):
                assert (one == another) == (value == other), (value, other)


def test_hashes_of_many_comments_do_not_collide_and_spread_over_all_bits(sample_comments):
    texts = [comment["text"] for comment in sample_comments]
    hashes = hash_texts(texts)
    assert len({tuple(each) for each in hashes.tolist()}) == len(set(texts))
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.1)


def test_a_hash_depends_on_its_own_text_and_scope_alone():
    alone = hash_texts([LONG], ["글"])
    assert hash_texts([OTHER, LONG, ""], [None, "글", "다른 글"])[1].tolist() == alone[0].tolist()
    assert hash_texts([LONG])[0].tolist() != alone[0].tolist() != hash_texts([LONG], ["다른 글"])[0].tolist()


def test_comments_without_a_thread_are_of_one_scope():
    hashes = hash_texts([LONG, LONG, LONG], [None, "", "글"]).tolist()
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_texts_have_no_hashes():
    assert hash_texts([]).shape == (0, 2)
    assert hash_texts([], []).shape == (0, 2)


# which comments are dropped


small_ids = st.none() | st.sampled_from(["1", "2", "3", "4", "5"])
comments = st.builds(
    Comment,
    st.sampled_from([LONG, OTHER, "그저 그래요", SHORT, "헐", "셋셋셋"]),
    st.sampled_from([None, "", "글", "다른 글"]),
    small_ids,
    st.none() | st.sampled_from(["1", "2", "3", "4", "5", "없는 댓글"]),
)
corpora = st.lists(comments, max_size=25)
CYCLE = [Comment(SHORT, None, "1", "2"), Comment(SHORT, None, "2", "1"), Comment(LONG, None, "3", "1")]


@PROPERTY
@given(corpora, st.lists(st.integers(0, 25), max_size=3), st.sampled_from(SCOPES))
@example(CYCLE, [1], "global")
@example([], [], "thread")
def test_the_same_comments_are_kept_as_by_the_oracle_however_they_are_cut_into_parts(corpus, cuts, scope):
    kept, counts, num_rescued = kept_of(cut(corpus, cuts), scope)
    assert (kept, num_rescued) == choose_kept(corpus, scope)
    is_short = Counter(len(corpus[row].text) < MIN_CHARS for row in set(range(len(corpus))) - set(kept))
    assert counts == {"duplicate": is_short[False], "too short": is_short[True]}
    require_no_orphans(corpus, kept)
    require_each_text(corpus, kept, scope)


def require_no_orphans(corpus: list[Comment], kept: list[int]) -> None:
    there, left = (
        {(comment.thread or "", comment.comment_id) for comment in some}
        for some in (corpus, [corpus[row] for row in kept])
    )
    for comment in (corpus[row] for row in kept if corpus[row].parent_id is not None):
        parent = (comment.thread or "", comment.parent_id)
        assert parent in left or parent not in there


def require_each_text(corpus: list[Comment], kept: list[int], scope: str) -> None:
    """Each text that is long enough is kept, once, but for the parents of what is kept."""
    there, left = (
        Counter((comment.text, (comment.thread or "") if scope == "thread" else "") for comment in some)
        for some in ([c for c in corpus if len(c.text) >= MIN_CHARS], [corpus[row] for row in kept])
    )
    parents = Counter(corpus[row].parent_id for row in kept)
    for key in there:
        assert left[key] >= 1
    if scope != "none" and not parents.keys() - {None}:
        assert max(left.values(), default=1) == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_a_larger_random_corpus_in_several_parts_is_as_by_the_oracle(scope):
    rng = np.random.default_rng(0)
    texts = [f"{number}번째 댓글" for number in range(250)] + [f"{number}" for number in range(50)]
    corpus = [
        Comment(
            texts[rng.integers(len(texts))],
            f"글-{rng.integers(5)}",
            f"{rng.integers(300)}" if rng.random() < 0.9 else None,
            f"{rng.integers(330)}" if rng.random() < 0.6 else None,
        )
        for _ in range(1000)
    ]
    kept, _, num_rescued = kept_of(cut(corpus, [0, 130, 131, 700, 700]), scope)
    assert (kept, num_rescued) == choose_kept(corpus, scope)
    assert num_rescued > 10


def test_the_first_occurrence_is_kept_in_input_order():
    parts = [[Comment(LONG, "ㄱ"), Comment(OTHER)], [Comment(LONG, "ㄴ"), Comment(LONG, "ㄱ")], [Comment(OTHER)]]
    assert kept_of(parts, "global")[0] == [0, 1]
    assert kept_of(parts, "thread")[0] == [0, 1, 2]
    assert kept_of(parts, "none") == ([0, 1, 2, 3, 4], {"duplicate": 0, "too short": 0}, 0)


def test_millions_of_rows_in_a_part_keep_their_order(tmp_path):
    """A position is more than 32 bits, and is no float on the way."""
    part = (1 << 20) + 1
    write_part(tmp_path, part, [Comment(LONG), Comment(LONG), Comment(OTHER), Comment(OTHER), Comment(LONG)], "global")
    assert dedup(tmp_path, has_parents=False) == ({"duplicate": 3, "too short": 0}, 0)
    assert read_dropped(tmp_path) == [(part << POSITION_BITS) + row for row in (1, 3, 4)]


def test_a_short_parent_is_kept_for_its_reply_and_so_on_upwards():
    chain = [Comment(SHORT, "글", f"{i}", f"{i - 1}" if i else None) for i in range(20)]
    kept, counts, num_rescued = kept_of([chain[:7], [*chain[7:], Comment(LONG, "글", "20", "19")]])
    assert kept == list(range(21))
    assert (counts, num_rescued) == ({"duplicate": 0, "too short": 0}, 20)


def test_a_short_comment_is_dropped_where_no_reply_is_kept():
    corpus = [Comment(SHORT, "글", "1"), Comment(SHORT, "글", "2", "1"), Comment(LONG, "글", "3")]
    assert kept_of([corpus]) == ([2], {"duplicate": 0, "too short": 2}, 0)


def test_a_duplicate_parent_is_kept_for_its_reply():
    corpus = [Comment(LONG, "글", "1"), Comment(LONG, "글", "2"), Comment(OTHER, "글", "3", "2")]
    assert kept_of([corpus]) == ([0, 1, 2], {"duplicate": 0, "too short": 0}, 1)


def test_a_reply_that_is_a_duplicate_keeps_no_parent():
    corpus = [Comment(OTHER, "글", "1"), Comment(SHORT, "글", "2"), Comment(OTHER, "글", "3", "2")]
    assert kept_of([corpus]) == ([0], {"duplicate": 1, "too short": 1}, 0)


def test_of_several_parents_with_one_id_the_first_is_kept():
    corpus = [Comment("헐", "글", "1"), Comment(SHORT, "글", "1"), Comment(LONG, "글", "2", "1")]
    assert kept_of([corpus])[0] == [0, 2]


def test_no_parent_is_taken_back_where_another_of_its_id_is_kept():
    corpus = [Comment(SHORT, "글", "1"), Comment(OTHER, "글", "1"), Comment(LONG, "글", "2", "1")]
    assert kept_of([corpus])[0] == [1, 2]


def test_a_parent_is_looked_for_in_its_thread():
    corpus = [Comment(SHORT, "글", "1"), Comment(SHORT, "다른 글", "1"), Comment(LONG, "다른 글", "2", "1")]
    assert kept_of([corpus])[0] == [1, 2]


def test_a_comment_that_is_its_own_parent_is_dropped_like_any_other():
    corpus = [Comment(SHORT, "글", "1", "1"), Comment(LONG, "글", "2", "2"), Comment(LONG, "글", "3", "3")]
    assert kept_of([corpus])[0] == [1]


def test_short_comments_that_reply_to_each_other_are_dropped_unless_a_third_replies():
    assert kept_of([CYCLE[:2]])[0] == []
    assert kept_of([CYCLE])[0] == [0, 1, 2]


def test_a_parent_that_is_nowhere_is_no_error():
    assert kept_of([[Comment(LONG, "글", "2", "1"), Comment(OTHER, None, None, "9")]])[0] == [0, 1]


def test_a_second_call_overwrites_what_a_first_left(tmp_path):
    write_parts(tmp_path, [[Comment(LONG), Comment(LONG)]], "global")
    first = dedup(tmp_path)
    (tmp_path / f"{DROPPED}.tmp").write_text("cut")
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill" / "duckdb_temp_storage-0.tmp").write_bytes(b"cut")
    assert dedup(tmp_path) == first
    assert read_dropped(tmp_path) == [1]


# memory


NUM_KEYS = 1_000_000


@pytest.fixture(scope="module")
def many_keys(tmp_path_factory):
    """A million keys of which a quarter repeats; 32 MB that DuckDB cannot hold in 24 MiB."""
    directory = tmp_path_factory.mktemp("many")
    (directory / "keys").mkdir()
    (directory / "cleaned").mkdir()
    numbers = np.random.default_rng(0).integers(0, NUM_KEYS * 2, NUM_KEYS).astype(np.uint64)
    for part, some in enumerate(np.split(numbers, 4)):
        columns = {
            "position": np.arange(len(some)) + (part << POSITION_BITS),
            "high": some * np.uint64(0x9E3779B97F4A7C15),
            "low": some,
            "num_bytes": np.full(len(some), 10),
            "is_short": np.zeros(len(some), bool),
        }
        file = directory / "keys" / f"{part:06d}.parquet"
        pq.write_table(pa.table(columns, schema=KEY_SCHEMA), file, row_group_size=4000)
    pq.write_table(TEXT_SCHEMA.empty_table(), directory / "cleaned" / "000000.parquet")
    _, first = np.unique(numbers, return_index=True)
    rows = np.setdiff1d(np.arange(NUM_KEYS), first)
    return directory, (((rows // (NUM_KEYS // 4)) << POSITION_BITS) + rows % (NUM_KEYS // 4)).tolist()


def test_with_too_little_memory_dedup_says_what_to_give(many_keys):
    directory, _ = many_keys
    with pytest.raises(InputError, match=r"(?s)^dedup within 4MiB: .*; give more --memory_mb$"):
        dedup(directory, memory_mb=4, has_parents=False)
    assert not (directory / DROPPED).exists()


def test_what_does_not_fit_into_memory_goes_to_the_disk_and_the_result_is_the_same(many_keys):
    directory, expected = many_keys
    spill = directory / "spill"
    spill.write_text("in the way")  # so that what would go to the disk cannot
    assert dedup(directory, memory_mb=1024, has_parents=False) == ({"duplicate": len(expected), "too short": 0}, 0)
    assert read_dropped(directory) == expected
    with pytest.raises(Exception, match="spill"):
        dedup(directory, memory_mb=40, has_parents=False)
    spill.unlink()
    (directory / DROPPED).unlink()
    assert dedup(directory, memory_mb=40, has_parents=False) == ({"duplicate": len(expected), "too short": 0}, 0)
    assert read_dropped(directory) == expected
    assert not list(directory.glob("spill/*"))
