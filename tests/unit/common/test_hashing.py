"""Hashes equal their definition, however the parameters are cut into pieces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.common import hashing


@given(numel=st.integers(0, 200), seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=60)
def test_pieces_do_not_change_a_hash(numel, seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    names = ["a", "b.10", "b.2"]  # name order is the order of strings
    keeps = [torch.randint(0, 2, (numel + i,), generator=generator, dtype=torch.uint8) for i in range(3)]
    weights = [torch.randn(numel + i, generator=generator) * keep for i, keep in enumerate(keeps)]

    masks, floats = hashing.MaskHash(), hashing.WeightsHash()
    for name, keep, weight in zip(names, keeps, weights, strict=True):
        edges = [0, *sorted(min(cut, len(keep)) for cut in cuts), len(keep)]
        for start, stop in zip(edges, edges[1:], strict=False):
            masks.update(name, keep[start:stop].bool() if start % 2 else keep[start:stop])
            floats.update(name, weight[start:stop])

    packed = b"".join(np.packbits(keep.numpy(), bitorder="little").tobytes() for keep in keeps)
    assert masks.hexdigest() == hashlib.sha256(packed).hexdigest()
    plain = b"".join((weight.numpy() + np.float32(0)).astype("<f4").tobytes() for weight in weights)
    assert floats.hexdigest() == hashlib.sha256(plain).hexdigest()


def test_hashes_see_one_flag_and_one_bit(monkeypatch):
    monkeypatch.setattr(hashing, "CHUNK", 7)  # smaller than the data
    keep, weight = torch.ones(1001, dtype=torch.uint8), torch.randn(1001)

    def digests():
        masks, floats = hashing.MaskHash(), hashing.WeightsHash()
        masks.update("p", keep.view(7, 143))
        floats.update("p", weight)
        return masks.hexdigest(), floats.hexdigest()

    before = digests()
    keep[1000] = 0
    weight[1000] = torch.nextafter(weight[1000], torch.tensor(9.0))
    after = digests()
    assert before[0] != after[0] and before[1] != after[1]


def test_negative_zero_and_half_precision_hash_like_fp32():
    first, second = hashing.WeightsHash(), hashing.WeightsHash()
    first.update("p", torch.tensor([-0.0, 0.5]))
    second.update("p", torch.tensor([0.0, 0.5], dtype=torch.bfloat16))
    assert first.hexdigest() == second.hexdigest()


@pytest.mark.parametrize("kind", [hashing.MaskHash, hashing.WeightsHash])
def test_name_order_is_required(kind):
    digest = kind()
    digest.update("b", torch.ones(3))
    with pytest.raises(ValueError, match="name order"):
        digest.update("a", torch.ones(3))


@given(flags=st.lists(st.booleans(), max_size=100))
@settings(max_examples=50)
def test_pack_and_unpack(flags):
    keep = torch.tensor(flags, dtype=torch.bool)
    packed = hashing.pack_keep(keep)
    assert packed.size == (len(flags) + 7) // 8
    assert torch.equal(hashing.unpack_keep(packed, len(flags)), keep.to(torch.uint8))
    with pytest.raises(ValueError, match="keep flags"):
        hashing.unpack_keep(packed, len(flags) + 8)


def test_file_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"pat" * 100_000)
    assert hashing.file_sha256(tmp_path / "file") == hashlib.sha256(b"pat" * 100_000).hexdigest()
