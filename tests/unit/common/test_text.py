"""Words for a name that is not known."""

from __future__ import annotations

from pat.common.text import ELSEWHERE, RENAMED, did_you_mean
from pat.pruning import registry
from pat.schema import DataConfig, EngineConfig, OptimConfig, TrainConfig


def test_an_old_name_says_the_new_one_where_that_is_allowed() -> None:
    assert did_you_mean("hard", ["hard_from", "start"]) == "; hard is called hard_from now"
    assert did_you_mean("hard", ["hart", "start"]) == "; did you mean hart?"
    assert did_you_mean("x", ["start"]) == ""
    assert did_you_mean("learning_rate", ["lr", "warmup"]) == "; did you mean lr?"


def test_new_names_exist_and_old_ones_do_not() -> None:
    known = set(TrainConfig.model_fields)
    for kind in registry.PACKAGES:
        known |= {key for name in registry.names(kind) for key in registry.defaults(kind, name)}
    assert set(RENAMED.values()) <= known and not known & set(RENAMED)
    known |= {key for group in (DataConfig, EngineConfig, OptimConfig) for key in group.model_fields}
    assert set(ELSEWHERE.values()) <= known and not known & set(ELSEWHERE)
