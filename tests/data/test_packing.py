"""Packed texts: the layout, selection, labels, and what is refused."""

from __future__ import annotations

import pytest
import torch

from blip_fast.data.packing import IGNORED, join_texts, pack

IDS = torch.tensor([[101, 7, 8, 102, 0], [101, 102, 0, 0, 0], [101, 5, 6, 9, 102]])
MASK = (IDS != 0).long()


@pytest.fixture(params=[True, False])
def texts(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr("blip_fast.data.packing._on_host", lambda tensor: False)
    packed = pack(IDS, MASK)
    assert packed.exact == request.param
    return packed


def test_layout(texts):
    assert texts.cu_seqlens.tolist() == [0, 4, 6, 11]
    assert texts.input_ids[:11].tolist() == [101, 7, 8, 102, 101, 102, 101, 5, 6, 9, 102]
    assert texts.positions[:11].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    assert texts.max_length == 5
    assert len(texts) == 3
    assert texts.with_first_token(1).input_ids[texts.first_rows].tolist() == [1, 1, 1]


def test_capacity(texts):
    rows = texts.input_ids.shape[0]
    wide = texts.with_capacity(rows + 5, max_length=8)
    assert (wide.input_ids.shape[0], wide.max_length, wide.exact) == (rows + 5, 8, False)
    assert torch.equal(wide.unpack(wide.input_ids)[:, :5], IDS)
    assert torch.equal(wide.next_tokens()[:11], texts.next_tokens()[:11])
    assert (wide.next_tokens()[11:] == IGNORED).all()
    same = texts.with_capacity(rows, 5)
    assert same.exact == texts.exact
    assert torch.equal(same.input_ids, texts.input_ids)
    for rows_wanted, length in ((rows - 1, 5), (rows, 4)):
        with pytest.raises(
            ValueError, match=f"rows={rows_wanted}, max_length={length} for {rows} rows and texts of up to 5"
        ):
            texts.with_capacity(rows_wanted, length)


def test_unpack_inverts_pack(texts):
    assert torch.equal(texts.unpack(texts.input_ids), IDS)
    values = torch.randn(texts.input_ids.shape[0], 3)
    padded = texts.unpack(values)
    assert torch.equal(padded[MASK.bool()], values[:11])
    assert padded[~MASK.bool()].abs().sum() == 0


def test_labels(texts):
    labels = texts.next_tokens()[:11].tolist()
    assert labels == [7, 8, 102, IGNORED, 102, IGNORED, 5, 6, 9, 102, IGNORED]
    assert texts.next_tokens()[11:].tolist() == [IGNORED] * (texts.input_ids.shape[0] - 11)
    assert texts.next_tokens(3)[:4].tolist() == [IGNORED, IGNORED, 102, IGNORED]


def test_pad_tokens_are_no_targets():
    ids = torch.tensor([[101, 7, 0, 8, 102], [101, 5, 102, 0, 0]])
    labels = pack(ids).next_tokens().tolist()
    assert labels == [7, IGNORED, 8, 102, IGNORED, 5, 102, IGNORED, IGNORED, IGNORED]


def test_selection_repeats_and_reorders(texts):
    chosen = texts.select(torch.tensor([2, 0, 0, 1]), 20)
    assert chosen.cu_seqlens.tolist() == [0, 5, 9, 13, 15]
    assert chosen.input_ids[:15].tolist() == [101, 5, 6, 9, 102, 101, 7, 8, 102, 101, 7, 8, 102, 101, 102]
    assert chosen.positions[:15].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_packed_texts_pass_through(texts):
    assert pack(texts) is texts


def test_without_a_mask_all_tokens_count():
    assert pack(IDS).cu_seqlens.tolist() == [0, 5, 10, 15]


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\); expected \(S, N\)"):
        pack(IDS[0])
    with pytest.raises(ValueError, match="attention_mask has shape"):
        pack(IDS, MASK[:2])


def test_joined_texts(texts):
    answers = pack(torch.tensor([[101, 20, 102], [101, 21, 102], [101, 22, 102]]), torch.tensor([[1, 1, 1]] * 3))
    joined = join_texts(texts, answers)
    assert joined.cu_seqlens.tolist() == [0, 6, 10, 17]
    expected = [101, 7, 8, 102, 20, 102, 101, 102, 21, 102, 101, 5, 6, 9, 102, 22, 102]
    assert joined.input_ids[:17].tolist() == expected
    assert joined.positions[:17].tolist() == [*range(6), *range(4), *range(7)]
    assert joined.max_length == 7
    assert joined.exact == texts.exact
    with pytest.raises(ValueError, match="first has 3 texts and second 1; expected as many"):
        join_texts(texts, pack(IDS[:1]))


@pytest.mark.parametrize("lengths", [[], [2, 0, 1], [1, 2, 0]])
def test_refuses_texts_without_tokens(lengths):
    mask = (torch.arange(3) < torch.tensor(lengths).view(-1, 1)).long()
    with pytest.raises(ValueError, match="expected at least one of each"):
        pack(torch.ones_like(mask), mask)
