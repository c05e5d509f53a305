"""Claims about framing and packing: nothing is lost, nothing is cut where it need not be, and rows are full."""

from collections import Counter

import numpy as np
import pytest

from kcelectra.errors import InputError
from kcelectra.pretraining.packing import MIN_LENGTH, Packer, frame_document

PAD, CLS, SEP = 0, 2, 3
FIRST_CONTENT_ID = 10


def frame(comment, replies=(), *, max_length):
    return frame_document(list(comment), list(replies), max_length=max_length, cls_token_id=CLS, sep_token_id=SEP)


def pack(documents, *, max_length):
    packer = Packer(max_length, pad_token_id=PAD)
    return [*packer.add(documents), *packer.flush()]


def documents_of(row):
    """Split a row at each [CLS], without its padding."""
    tokens = row[row != PAD]
    return [tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == CLS)[1:])]


def random_documents(lengths):
    """Frame documents of these lengths, every content id used once, so that any exchange or loss shows."""
    next_id = FIRST_CONTENT_ID
    documents = []
    for length in lengths:
        documents.append([CLS, *range(next_id, next_id + length - 2), SEP])
        next_id += length - 2
    return documents


def comment_lengths(num_comments, *, seed=0):
    """Draw log-normal lengths, mean 28 tokens: KcBERT's corpus has about 140 bytes a line (electra.md, 1.1)."""
    return np.random.default_rng(seed).lognormal(np.log(20), 0.82, num_comments).astype(int) + 1


def test_comment_alone_is_framed_by_cls_and_sep():
    assert frame([10, 11, 12], max_length=8) == [[CLS, 10, 11, 12, SEP]]


def test_comment_and_replies_are_two_segments_of_one_document():
    assert frame([10, 11], [12, 13], max_length=8) == [[CLS, 10, 11, SEP, 12, 13, SEP]]


def test_long_comment_goes_on_in_further_documents_and_its_replies_join_the_last():
    assert frame(range(10, 24), [30, 31], max_length=8) == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 16, 17, 18, 19, 20, 21, SEP],
        [CLS, 22, 23, SEP, 30, 31, SEP],
    ]


def test_long_replies_go_on_in_further_documents():
    assert frame([10, 11], range(30, 44), max_length=8) == [
        [CLS, 10, 11, SEP, 30, 31, 32, SEP],
        [CLS, 33, 34, 35, 36, 37, 38, SEP],
        [CLS, 39, 40, 41, 42, 43, SEP],
    ]


@pytest.mark.parametrize(
    ("num_comment", "num_replies", "lengths"),
    [
        (6, 0, [8]),  # the comment fills the document
        (7, 0, [8, 3]),  # one token more
        (5, 1, [7, 3]),  # a second [SEP] fits, a reply does not
        (4, 1, [8]),  # the pair fills the document
        (4, 2, [8, 3]),
        (6, 6, [8, 8]),
        (12, 6, [8, 8, 8]),
        (0, 6, [8]),  # a comment that has no tokens
        (0, 0, []),
    ],
)
def test_exact_fits_leave_no_empty_piece(num_comment, num_replies, lengths):
    pieces = frame(range(10, 10 + num_comment), range(30, 30 + num_replies), max_length=8)
    assert [len(piece) for piece in pieces] == lengths


@pytest.mark.parametrize("max_length", range(MIN_LENGTH, 21))
def test_pieces_joined_are_the_comment_and_its_replies(max_length):
    for num_comment in range(2 * max_length + 2):
        for num_replies in range(2 * max_length + 2):
            content = list(range(FIRST_CONTENT_ID, FIRST_CONTENT_ID + num_comment + num_replies))
            pieces = frame(content[:num_comment], content[num_comment:], max_length=max_length)
            assert [token for piece in pieces for token in piece if token >= FIRST_CONTENT_ID] == content
            for piece in pieces:
                assert 3 <= len(piece) <= max_length
                assert piece[0] == CLS and piece[-1] == SEP
                assert piece.count(CLS) == 1 and piece.count(SEP) <= 2
                assert piece[1] >= FIRST_CONTENT_ID and piece[-2] >= FIRST_CONTENT_ID  # no empty segment
            assert sum(piece.count(SEP) == 2 for piece in pieces) <= 1


def test_framing_leaves_its_arguments_as_they_were():
    comment, replies = list(range(10, 30)), list(range(30, 50))
    frame_document(comment, replies, max_length=8, cls_token_id=CLS, sep_token_id=SEP)
    assert comment == list(range(10, 30)) and replies == list(range(30, 50))


@pytest.mark.parametrize("max_length", [8, 13, 64, 128, 512])
@pytest.mark.parametrize("seed", range(3))
def test_packing_conserves_every_document(max_length, seed):
    lengths = np.random.default_rng([seed, max_length]).integers(3, max_length + 1, size=1500)
    documents = random_documents(lengths.tolist())
    rows = pack(documents, max_length=max_length)
    packed = [document for row in rows for document in documents_of(row)]
    assert Counter(packed) == Counter(map(tuple, documents))  # whole, and in order inside
    assert Counter(token for document in packed for token in document) == Counter(
        token for document in documents for token in document
    )


@pytest.mark.parametrize("max_length", [8, 128])
def test_framed_comments_of_any_length_lose_no_token_in_packing(max_length):
    comments = [list(range(10, 10 + length)) for length in comment_lengths(2000)]
    pieces = [piece for comment in comments for piece in frame(comment, max_length=max_length)]
    rows = np.stack(pack(pieces, max_length=max_length))
    content = Counter(rows[rows >= FIRST_CONTENT_ID].tolist())
    assert content == Counter(token for comment in comments for token in comment)


@pytest.mark.parametrize("max_length", [8, 13, 128])
def test_rows_have_one_length_and_padding_at_the_end_only(max_length):
    lengths = np.random.default_rng(max_length).integers(3, max_length + 1, size=1000)
    rows = pack(random_documents(lengths.tolist()), max_length=max_length)
    for row in rows:
        assert row.shape == (max_length,) and row.dtype == np.int32
        assert row[0] == CLS
        num_tokens = np.count_nonzero(row != PAD)
        assert (row[:num_tokens] != PAD).all() and row[num_tokens - 1] == SEP


def test_packing_twice_gives_the_same_rows():
    documents = random_documents(np.random.default_rng(0).integers(3, 65, size=1000).tolist())
    np.testing.assert_array_equal(pack(documents, max_length=64), pack(documents, max_length=64))


def test_packing_does_not_depend_on_how_documents_arrive():
    documents = random_documents(np.random.default_rng(0).integers(3, 65, size=1000).tolist())
    packer = Packer(64, pad_token_id=PAD)
    rows = [row for document in documents for row in packer.add([document])]
    np.testing.assert_array_equal([*rows, *packer.flush()], pack(documents, max_length=64))


@pytest.mark.parametrize("max_length", [64, 128, 256, 512])
def test_rows_of_comments_are_98_percent_full(max_length):
    comments = (list(range(10, 10 + length)) for length in comment_lengths(20_000))
    pieces = [piece for comment in comments for piece in frame(comment, max_length=max_length)]
    rows = pack(pieces, max_length=max_length)
    assert sum(map(len, pieces)) / (len(rows) * max_length) > 0.98


def test_documents_that_fill_a_row_make_one_row_each():
    rows = pack(random_documents([16] * 400), max_length=16)
    assert len(rows) == 400 and all((row != PAD).all() for row in rows)


def test_max_length_below_8_is_an_input_error():
    with pytest.raises(InputError, match="max_length is 7; give at least 8"):
        Packer(7, pad_token_id=PAD)
    assert len(pack(random_documents([8]), max_length=8)) == 1


def test_flush_is_idempotent_and_the_packer_goes_on_after_it():
    packer = Packer(16, pad_token_id=PAD)
    assert list(packer.add(random_documents([5, 9]))) == []
    assert len(list(packer.flush())) == 1
    assert list(packer.flush()) == []
    assert list(packer.add(random_documents([7]))) == []
    (row,) = packer.flush()
    assert [len(document) for document in documents_of(row)] == [7]


@pytest.mark.parametrize("cut", [0, 1, 50, 255, 256, 300, 1999, 2000])
def test_a_packer_goes_on_where_another_one_was(cut):
    lengths = np.random.default_rng(cut).integers(3, 40, 2000)  # many of each length, whose order must not change
    documents = random_documents(lengths)
    first = Packer(128, pad_token_id=PAD)
    rows = [*first.add(documents[:cut])]
    second = Packer(128, pad_token_id=PAD, pending=first.pending)
    rows += [*second.add(documents[cut:]), *second.flush()]
    np.testing.assert_array_equal(rows, pack(documents, max_length=128))
