"""Positions of slices, in an order that people expect."""

from __future__ import annotations

from pat.common import slices


def test_slices_stand_by_dimension_and_value() -> None:
    named = [["label=10", "form=short"], ["label=2", "form=long"], ["label=10", "form=short"], ["form=long", "d=x"]]
    found = slices.places(enumerate(named))
    assert list(found) == ["label=2", "label=10", "form=long", "form=short", "d=x"]
    assert found["label=10"] == [0, 2] and found["form=long"] == [1, 3]
