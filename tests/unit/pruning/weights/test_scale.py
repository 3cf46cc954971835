"""Simulated ranks: the same masks, updates and re-sharded state on any number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks import bench_scale as scale
from tests.fake_run import write_checkpoint
from tests.thread_ranks import oracle


@pytest.mark.parametrize("layout", scale.LAYOUTS)
@pytest.mark.parametrize("ranks", [1, 2, 7, 64])
def test_simulated_ranks_select_what_one_sort_selects(ranks: int, layout: str) -> None:
    """64 ranks on 3 parameters of 90 weights: some hold nothing; half of the scores are ties."""
    generator = torch.Generator().manual_seed(ranks)
    scores = [torch.randint(0, 4, (9, 10), generator=generator).float() for _ in range(3)]
    keep, seconds = scale.select(scores, ranks, layout)
    expected = oracle({f"layer.{i}": s for i, s in enumerate(scores)}, 270 - round(scale.SPARSITY * 270))
    for i, flags in enumerate(keep):
        assert flags.view(9, 10).tolist() == expected[f"layer.{i}"].tolist()
    assert len(seconds) == ranks and all(s > 0 for s in seconds)


@pytest.mark.parametrize("layout", scale.LAYOUTS)
@pytest.mark.parametrize("ranks", [1, 3, 50])
def test_ranks_hold_every_element_once(ranks: int, layout: str) -> None:
    held = [torch.zeros(n, dtype=torch.int64) for n in (7, 90, 1)]
    for rank in range(ranks):
        for index, start, numel in scale.places([7, 90, 1], rank, ranks, layout):
            held[index][start : start + numel] += 1
    assert all(bool((h == 1).all()) for h in held)


def test_an_error_of_one_rank_ends_the_simulation() -> None:
    with pytest.raises(ValueError, match="NaN"):
        scale.select([torch.full((4, 4), float("nan"))], 3, "zero3")


def test_the_whole_table_is_made_of_identical_results() -> None:
    rows = scale.simulate([2, 16], layers=2, side=24)
    assert [row["ranks"] for row in rows] == [2, 16]
    assert all(value > 0 for row in rows for value in row.values())


def test_re_slicing_gives_back_what_was_written(tmp_path: Path) -> None:
    """A reader that mixed up offsets would agree with itself: compare with what was saved."""
    saved = write_checkpoint(tmp_path / "step-00000020", scale.model(2, 12), ranks=3, layout="zero3")
    found, _ = scale.reslice(tmp_path / "step-00000020", {name: 144 for name in saved.weight}, 5)
    for name in saved.weight:
        assert torch.equal(found[f"weight {name}"], saved.weight[name])
        assert torch.equal(found[f"exp_avg {name}"], saved.exp_avg[name])
