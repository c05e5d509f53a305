"""Claims about the masks: how many, where, what is shown in their place, and what they depend on (electra.md, 7.1)."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kcelectra.errors import InputError
from kcelectra.pretraining.collator import IGNORED, DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.modeling import KcElectraForPreTraining

PAD, UNK, CLS, SEP, MASK = range(5)
FIRST_CONTENT_ID = 10
SPECIALS = torch.tensor([PAD, CLS, SEP, MASK])


@pytest.fixture
def collator(tokenizer):
    return DataCollatorForReplacedTokenDetection(tokenizer)


def make_row(row_id, *lengths, max_length=128):
    """Pack documents of these lengths, specials counted, into a row; content ids rise along it."""
    ids = np.arange(FIRST_CONTENT_ID, FIRST_CONTENT_ID + max_length)
    ends = np.cumsum(lengths)
    ids[ends - lengths] = CLS
    ids[ends - 1] = SEP
    ids[ends[-1] :] = PAD
    return {"input_ids": ids, "row_id": row_id}


def make_rows(num_rows, *lengths, max_length=128):
    return [make_row(row_id, *lengths or (max_length,), max_length=max_length) for row_id in range(num_rows)]


def stack(rows):
    return torch.from_numpy(np.stack([row["input_ids"] for row in rows]))


def unmask(batch):
    """Put the labels back where they were taken from."""
    is_used = batch["masked_labels"] != IGNORED
    kept = batch["input_ids"].gather(1, batch["masked_positions"])
    return batch["input_ids"].scatter(1, batch["masked_positions"], torch.where(is_used, batch["masked_labels"], kept))


def chi_square_p(statistic, degrees):
    return torch.special.gammaincc(torch.tensor(degrees / 2.0), torch.tensor(statistic / 2.0)).item()


def assert_equal_batches(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


# How many


@pytest.mark.parametrize(
    ("max_length", "mask_probability", "slots"), [(128, 0.15, 19), (512, 0.15, 79), (512, 0.25, 130)]
)
def test_number_of_slots_equals_the_reference(tokenizer, max_length, mask_probability, slots):
    collator = DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=mask_probability)
    assert collator.num_masked(max_length) == slots
    assert collator([make_row(0, max_length, max_length=max_length)])["masked_positions"].shape == (1, slots)


@pytest.mark.parametrize(("max_length", "mask_probability"), [(128, 0.15), (512, 0.15), (512, 0.25)])
def test_exactly_the_reference_number_of_positions_is_masked_and_all_are_distinct(
    tokenizer, max_length, mask_probability
):
    collator = DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=mask_probability)
    slots = collator.num_masked(max_length)
    num_tokens = range(3, max_length + 1)
    batch = collator([make_row(n, n, max_length=max_length) for n in num_tokens])
    for n, positions, labels in zip(num_tokens, batch["masked_positions"], batch["masked_labels"], strict=True):
        expected = max(1, min(slots, round(n * mask_probability)))  # Python rounds half to even, as tf.round does
        used = positions[labels != IGNORED].tolist()
        assert len(used) == len(set(used)) == min(expected, n - 2), n


@pytest.mark.parametrize(("num_tokens", "num_masked"), [(10, 2), (30, 4), (50, 8), (70, 10), (3, 1), (128, 19)])
def test_half_a_token_is_rounded_to_even(collator, num_tokens, num_masked):
    batch = collator([make_row(0, num_tokens)])  # 1.5, 4.5, 7.5 and 10.5 tokens; a row masks at least one
    assert (batch["masked_labels"] != IGNORED).sum() == num_masked


def test_unused_slots_of_a_short_row_hold_position_0_and_change_nothing(collator):
    batch = collator([make_row(0, 20), make_row(1, 128)])
    is_used = batch["masked_labels"][0] != IGNORED
    assert is_used.tolist() == [True] * 3 + [False] * 16
    assert batch["masked_positions"][0, 3:].tolist() == [0] * 16
    assert batch["masked_labels"][0, 3:].tolist() == [IGNORED] * 16
    assert batch["input_ids"][0, 0] == CLS
    assert (batch["masked_labels"][1] != IGNORED).all()


def test_row_without_maskable_tokens_masks_nothing(collator):
    row = {"input_ids": [CLS, SEP] * 5 + [CLS, MASK, SEP] + [PAD] * 3, "row_id": 0}
    batch = collator([row])
    assert batch["input_ids"].tolist() == [row["input_ids"]]
    assert (batch["masked_labels"] == IGNORED).all() and (batch["masked_positions"] == 0).all()


@pytest.mark.parametrize("mask_probability", [0.5, 0.9, 0.999])
def test_high_mask_probability_masks_no_more_than_the_row_holds(tokenizer, mask_probability):
    collator = DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=mask_probability)
    batch = collator(make_rows(2, max_length=512))
    num_masked = (batch["masked_labels"] != IGNORED).sum(dim=1)
    assert num_masked.tolist() == [min(round(512 * mask_probability), 510)] * 2


# Where, and what is shown


@pytest.fixture(scope="module")
def masks_of_100_000_rows(tokenizer):
    """Mask one-document rows of 128; counts by position, by slot and of neighbours, and the positions hidden."""
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    template = make_row(0, 128)["input_ids"]
    by_position, hidden_by_slot = np.zeros(128), np.zeros(19)
    neighbours, shown_otherwise, successors = 0, 0, np.zeros(3)
    for start in range(0, 100_000, 10_000):
        batch = collator([{"input_ids": template, "row_id": row_id} for row_id in range(start, start + 10_000)])
        positions, labels = batch["masked_positions"], batch["masked_labels"]
        shown = batch["input_ids"].gather(1, positions)
        is_masked = torch.zeros(10_000, 128, dtype=torch.bool).scatter(1, positions, True)
        by_position += is_masked.sum(dim=0).numpy()
        hidden_by_slot += (shown == MASK).sum(dim=0).numpy()
        shown_otherwise += ((shown != MASK) & (shown != labels)).sum().item()
        neighbours += (is_masked[:, 1:] & is_masked[:, :-1]).sum().item()
        for i, shift in enumerate((-1, 0, 1)):  # the next row, at the position before, here and after
            successors[i] += (is_masked[1:, 2:126] & is_masked[:-1].roll(shift, dims=1)[:, 2:126]).sum().item()
    return by_position, hidden_by_slot, neighbours, successors, shown_otherwise


def test_every_position_is_masked_equally_often(masks_of_100_000_rows):
    by_position, *_ = masks_of_100_000_rows
    assert by_position[0] == by_position[127] == 0  # [CLS], [SEP]
    share = 19 / 126
    expected = 100_000 * share
    # 19 of 126 without replacement: the counts' covariance is n p (1-p) 126/125 times a projection of rank 125
    statistic = ((by_position[1:127] - expected) ** 2).sum() / (expected * (1 - share) * 126 / 125)
    assert 1e-3 < chi_square_p(statistic, 125) < 1 - 1e-3


def test_positions_are_masked_independently_of_their_neighbours_and_of_the_next_row(masks_of_100_000_rows):
    _, _, neighbours, successors, _ = masks_of_100_000_rows
    assert neighbours / (100_000 * 125) == pytest.approx(19 * 18 / (126 * 125), rel=0.005)
    assert successors / (99_990 * 124) == pytest.approx(np.full(3, (19 / 126) ** 2), rel=0.005)


def test_85_percent_of_masked_tokens_are_hidden_and_the_others_are_shown(masks_of_100_000_rows):
    _, hidden_by_slot, _, _, shown_otherwise = masks_of_100_000_rows
    assert hidden_by_slot.sum() / (100_000 * 19) == pytest.approx(0.85, abs=0.01)
    assert shown_otherwise == 0


def test_being_hidden_does_not_depend_on_the_slot(masks_of_100_000_rows):
    _, hidden_by_slot, *_ = masks_of_100_000_rows
    statistic = ((hidden_by_slot - 85_000) ** 2).sum() / (100_000 * 0.85 * 0.15)
    assert chi_square_p(statistic, 19) > 1e-3


def test_no_special_token_is_ever_masked(collator):
    rows = [make_row(row_id, 3, 40, 5, 31, 29, 10) for row_id in range(3000)]
    original = stack(rows)
    batch = collator(rows)
    labels = batch["masked_labels"]
    assert not torch.isin(labels[labels != IGNORED], SPECIALS).any()
    is_special = torch.isin(original, SPECIALS)
    assert torch.equal(batch["input_ids"][is_special], original[is_special])
    is_masked = torch.zeros(original.shape, dtype=torch.bool).scatter(1, batch["masked_positions"], True)
    is_masked[:, 0] = False  # where unused slots point
    assert not (is_masked & is_special).any()
    assert is_masked.any(dim=0)[~is_special[0]].all()  # and every other position is, in some row


def test_unknown_token_can_be_masked(collator):
    batch = collator([{"input_ids": [CLS] + [UNK] * 126 + [SEP], "row_id": 0}])
    assert batch["masked_labels"].tolist() == [[UNK] * 19]
    assert (batch["input_ids"] == MASK).sum() > 0


def test_labels_put_back_restore_the_row(collator):
    rows = [make_row(0, 128), make_row(1, 20), make_row(2, 3, 60, 40), make_row(3, 3)]
    batch = collator(rows)
    assert not torch.equal(batch["input_ids"], stack(rows))
    assert torch.equal(unmask(batch), stack(rows))


def test_reference_draws_with_replacement_and_masks_less_than_we_do(collator):
    """An oracle of what we differ from: `pretrain_helpers.mask` draws each slot alike (electra.md, 1.2)."""
    draws = np.sort(1 + np.random.default_rng(0).integers(126, size=(50_000, 19)), axis=1)
    is_first = np.diff(draws, axis=1, prepend=0) > 0
    is_repeated = is_first & (np.diff(draws, axis=1, append=0) == 0)  # the next draw is the same position
    num_distinct = is_first.sum()
    assert num_distinct / (50_000 * 128) == pytest.approx(0.138, abs=0.002)
    assert is_repeated.sum() / num_distinct == pytest.approx(0.070, abs=0.005)  # their replacement: a mean of two ids

    positions = collator(make_rows(1000))["masked_positions"].sort(dim=1).values
    assert (positions.diff(dim=1) > 0).all() and positions.shape == (1000, 19)


# What they depend on


def test_masks_do_not_depend_on_the_batch(collator):
    rows = make_rows(40, 70, 50)
    whole = collator(rows)
    shuffled = np.random.default_rng(0).permutation(40)
    for size in (1, 7, 40):
        for start in range(0, 40, size):
            chosen = shuffled[start : start + size]
            batch = collator([rows[index] for index in chosen])
            assert_equal_batches(batch, {name: tensor[chosen] for name, tensor in whole.items()})


def test_masks_do_not_depend_on_the_worker(collator):
    rows = make_rows(24, 70, 50)
    expected = list(DataLoader(rows, batch_size=4, collate_fn=collator))
    for workers in (1, 2):
        batches = list(DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=workers))
        for batch, other in zip(batches, expected, strict=True):
            assert_equal_batches(batch, other)


def test_masks_do_not_depend_on_what_was_drawn_before(tokenizer, collator):
    rows = make_rows(8)
    expected = collator(rows)
    np.random.seed(1)
    torch.manual_seed(1)
    assert_equal_batches(collator(rows), expected)
    assert_equal_batches(DataCollatorForReplacedTokenDetection(tokenizer)(rows), expected)


def test_masks_are_those_of_every_machine_and_release(collator):
    batch = collator([make_row(7, 20, 12, max_length=40)])  # golden: resuming after an upgrade must mask alike
    assert batch["masked_positions"].tolist() == [[6, 2, 1, 16, 22, 0]]
    assert batch["masked_labels"].tolist() == [[16, 12, 11, 26, 32, IGNORED]]
    hidden = (batch["input_ids"][0] == MASK).nonzero().flatten()
    assert hidden.tolist() == [1, 6, 16, 22]


def test_masks_do_not_depend_on_the_tokens(collator):
    rows = make_rows(8)
    others = [{**row, "input_ids": np.where(row["input_ids"] < 10, row["input_ids"], 500)} for row in rows]
    assert torch.equal(collator(rows)["masked_positions"], collator(others)["masked_positions"])


def test_each_epoch_seed_and_row_id_has_masks_of_its_own(tokenizer, collator):
    rows = make_rows(50)
    first = collator(rows)["masked_positions"]
    assert len({tuple(positions.tolist()) for positions in first}) == 50
    collator.set_epoch(1)
    second = collator(rows)["masked_positions"]
    third = DataCollatorForReplacedTokenDetection(tokenizer, seed=1)(rows)["masked_positions"]
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).any(dim=1).all()
    collator.set_epoch(0)
    assert torch.equal(collator(rows)["masked_positions"], first)


# What else a batch holds


def test_packed_row_becomes_documents_positions_and_token_types(collator):
    rows = [
        [CLS, 10, 11, SEP, 12, SEP, CLS, 13, SEP, CLS, 14, SEP, 15, 16, SEP, PAD],
        [CLS, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, SEP],
        [CLS, 10, SEP, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    batch = collator([{"input_ids": ids, "row_id": 5 + i} for i, ids in enumerate(rows)])
    assert unmask(batch).tolist() == rows
    assert batch["document_ids"].tolist() == [
        [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0],
        [1] * 16,
        [1, 1, 1] + [0] * 13,
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3, 4, 5, 0],
        list(range(16)),
        [0, 1, 2] + [0] * 13,
    ]
    assert batch["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0],
        [0] * 16,
        [0] * 16,
    ]
    assert batch["row_id"].tolist() == [5, 6, 7]


def test_documents_are_derived_before_masking(collator):
    rows = make_rows(1, 70, 50)
    expected = collator(rows)["document_ids"]
    for epoch in range(1, 20):
        collator.set_epoch(epoch)
        assert torch.equal(collator(rows)["document_ids"], expected)


def test_batch_is_what_the_model_takes_and_has_no_labels(collator):
    batch = collator(make_rows(3))
    assert "labels" not in batch  # the Trainer would pop or smooth them
    assert batch.keys() < inspect.signature(KcElectraForPreTraining.forward).parameters.keys()
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64, name
        assert tensor.shape[0] == 3, name


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist,
        lambda ids: ids.astype(np.int32),
        lambda ids: ids.astype(np.int64),
        lambda ids: torch.from_numpy(ids.astype(np.int32)),
        torch.from_numpy,
    ],
    ids=["list", "numpy int32", "numpy int64", "tensor int32", "tensor int64"],
)
def test_lists_arrays_and_tensors_give_equal_batches(collator, convert):
    rows = make_rows(5, 70, 50)
    converted = [{"input_ids": convert(row["input_ids"]), "row_id": row["row_id"]} for row in rows]
    assert_equal_batches(collator(converted), collator(rows))


def test_rows_are_left_as_they_were(collator):
    rows = make_rows(2)
    original = stack(rows).clone()
    collator(rows)
    assert torch.equal(stack(rows), original)


# What is refused


def test_row_that_does_not_begin_with_cls_is_named(collator):
    rows = make_rows(3)
    rows[1] = {"input_ids": np.roll(rows[1]["input_ids"], 1), "row_id": 17}
    with pytest.raises(ValueError, match=r"row 17 does not begin with \[CLS\] \(2\)"):
        collator(rows)


def test_no_masked_token_in_a_row_is_an_input_error(collator):
    with pytest.raises(
        InputError, match="mask_probability 0.15 of max_length 6 is less than one token: give a larger"
    ):
        collator([make_row(0, 6, max_length=6)])
    assert collator.num_masked(7) == 1


@pytest.mark.parametrize("mask_probability", [0, 1, -0.1, 1.5, 15, math.nan])
def test_mask_probability_is_above_0_and_below_1(tokenizer, mask_probability):
    with pytest.raises(InputError, match="mask_probability is .*; give a share between 0 and 1"):
        DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=mask_probability)


@pytest.mark.parametrize("convert", [np.ndarray.tolist, np.asarray, torch.from_numpy])
def test_rows_of_different_lengths_are_refused(collator, convert):
    rows = [make_row(0, 128), make_row(1, 64, max_length=64)]
    with pytest.raises(ValueError):
        collator([{**row, "input_ids": convert(row["input_ids"])} for row in rows])


def test_a_row_without_an_id_is_refused(tokenizer):
    with pytest.raises(ValueError, match="a row has input_ids; give input_ids and row_id"):
        DataCollatorForReplacedTokenDetection(tokenizer)([{"input_ids": [CLS, *range(10, 30), SEP]}])


def test_rows_of_two_lengths_are_named(tokenizer):
    rows = [{"input_ids": [CLS, *range(10, 10 + n), SEP], "row_id": n} for n in (20, 30)]
    with pytest.raises(ValueError, match="rows have lengths from 22 to 32; give packed rows of one length"):
        DataCollatorForReplacedTokenDetection(tokenizer)(rows)
