"""An envelope that could not lead the run is refused before it starts, in one sentence that says what to set."""

from __future__ import annotations

from typing import Any

import pytest

from pat.config import compose
from pat.config.validate import validate
from pat.schema import Config, PrunerConfig

P, RISE = "pruners.weights", "envelope.loss.rise=0.1"


def composed(*overrides: str) -> Config:
    found: list[Config] = []
    compose.compose(["recipe=parity", "logger=none", "run.dir=x", *overrides], lambda config: found.append(config) or 0)
    return found[0]


def test_a_limit_is_given_like_any_key() -> None:
    key = "envelope.perplexity.ratio=1.05"
    for given in (key, f"+{key}", "envelope={perplexity: {ratio: 1.05}}"):
        assert composed(given).envelope["perplexity"].bounds() == {"ratio": 1.05}
    assert composed().envelope == {}
    nested = Config().changed(envelope={"perplexity": {"ratio": 1.05}, "slices.max": 9.0}).envelope
    assert nested["slices"].bounds() == {"max": 9.0}, "as pat gate takes it"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["envelope.loss=9"], "envelope.loss is 9, but must be a mapping {key: value}"),
        (["envelope.f1.drop=0.1"], "has no metric 'f1': allowed are loss, perplexity"),
        (["envelope.loss.drop=0.1"], "envelope.loss.drop: loss is better when lower, so give rise or ratio"),
        (["envelope.slices.drop=0.1"], "envelope.slices.drop: loss is better when lower, so give rise or ratio"),
        (["envelope.loss.rise=0.1", "envelope.loss.least=9"], "envelope.loss.least: only envelope.slices has it"),
        (["envelope.latency_p95.ratio=0.7"], "latency_p95 is measured by `pat profile` and not known while a model"),
        (["envelope.passed.drop=0.1"], "passed is of the prompts of a mix"),
        (["envelope.sparsity.min=0.5"], "sparsity is of the finished model"),
        (["envelope.loss.ratio=0.9"], "envelope.loss.ratio is 0.9, which the dense model itself does not keep"),
        ([RISE, "train.eval_every=null"], "train.eval_every is null, so that no evaluation"),
        ([RISE, "train.eval_every=25"], "mask at step 5 and the last at step 20"),
        ([RISE, f"{P}.schedule.name=one_shot"], f"{P}.schedule cuts all at once"),
        ([RISE, f"{P}.schedule.select_every=15"], f"{P}.schedule cuts all at once"),
        ([RISE, "optim.lr_schedule=per_cut"], "optim.lr_schedule=per_cut goes by the cuts, which an envelope moves"),
        ([RISE, f"{P}.criterion.name=soft_movement"], f"{P}.criterion=soft_movement prunes by a threshold"),
        ([RISE, "pruners={}"], "envelope is set, but nothing is pruned"),
        ([RISE, "train.num_steps=0"], "envelope is set, but train.num_steps is 0"),
        (["train.envelope_patience=1"], "without envelope it would be ignored"),
    ],
)  # fmt: skip
def test_what_it_cannot_lead_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError) as error:
        composed(*overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_learned_gates_are_refused() -> None:
    config = composed()
    narrow: dict[str, Any] = {
        "structures": ["ffn"], "gate": "l0", "budget": {"name": "shape", "keep": {"ffn": 8}},
        "schedule": {"name": "linear", "start": 5, "end": 20},
    }  # fmt: skip
    with pytest.raises(ValueError, match="pruners.narrow.gate=l0 learns towards its last target and cannot be held"):
        validate(config.changed(envelope={"loss": {"rise": 0.1}}, pruners={"narrow": PrunerConfig(**narrow)}))
