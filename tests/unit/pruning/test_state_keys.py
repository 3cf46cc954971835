"""The names of what is in a file of pruner state: those that checkpoints on disk have."""

from __future__ import annotations

from pat.pruning import state_keys


def test_names_on_disk() -> None:
    assert state_keys.of_mask("weights", state_keys.KEEP, "layer.0.weight", 12) == "weights|keep|layer.0.weight|12"
    assert state_keys.KINDS == ("keep", "score", "dense")
    keys = ["narrow|gate|z", "narrow|gate|keep", "other|gate|z", "narrow|keep|w|0"]
    assert state_keys.gates_in(keys, "narrow") == {"keep": "narrow|gate|keep", "z": "narrow|gate|z"}
    assert state_keys.of_gates("narrow", "z") == keys[0]
