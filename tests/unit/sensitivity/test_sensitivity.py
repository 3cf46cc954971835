"""`pat sensitivity`: a cell is the loss without these weights, and the model is the same before and after."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from pat import cli
from pat.commands import sensitivity
from pat.models.families import anatomy
from pat.sensitivity import plot, report
from pat.sensitivity.cells import Cell, Grid, grid, keep_largest, unit_magnitude
from pat.sensitivity.journal import Journal
from pat.sensitivity.measure import Metrics, evaluate, loss_of, measure
from pat.tasks import base
from pat.tasks.causal_lm import CausalLM
from tests import models
from tests.sets import thinned

LM = base.build({"name": "causal_lm"})
CASES = list(models.cases())


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    ids = models.tokens(2 * count, 7).split(2)
    return [{"input_ids": x, "labels": x, "weight": torch.ones(2)} for x in ids]


def measured(model: Any, found: Grid) -> dict[tuple[str, int], Metrics]:
    return {cell.key: metrics for cell, metrics in measure(model, LM, batches(), found, found.cells)}


def small(model_type: str, variant: str | None = None) -> Any:
    """Without `use_cache`, which an encoder does not take."""
    return models.model(model_type, variant).eval()


@pytest.fixture(autouse=True)
def any_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders as language models: what is compared is the forward, not the task."""
    monkeypatch.setattr(CausalLM, "options", {})  # pyright: ignore


def by_hand(model: Any, changed: dict[str, Tensor]) -> float:
    """The loss of the model with other weights, by torch alone."""
    losses = []
    with torch.no_grad():
        for batch in batches():
            logits = torch.func.functional_call(model, changed, kwargs={"input_ids": batch["input_ids"]}).logits
            losses.append(
                F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
            )
    return float(sum(losses)) / (4 * 6)


def without_smallest(weight: Tensor, count: int) -> Tensor:
    flat = weight.detach().clone().flatten()
    flat[flat.abs().sort(stable=True).indices[:count]] = 0.0
    return flat.view(weight.shape)


@pytest.mark.parametrize(("model_type", "variant"), thinned(CASES, 4))
def test_every_cell_is_the_loss_of_a_model_with_these_weights_zeroed_by_hand(model_type: str, variant: str) -> None:
    """Catches a wrong part, a hook that stays, weights that are not put back, and a prefix of another batch."""
    model = small(model_type, variant)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = grid(model, [0.5])
    results = measured(model, found)
    assert len(results) == len(found.cells) == len(found.kinds) * models.LAYERS
    after = model.state_dict()
    assert all(torch.equal(value.view(torch.int32), after[name].view(torch.int32)) for name, value in before.items()
               if value.dtype == torch.float32)  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    whole = by_hand(model, {})
    assert evaluate(model, LM, batches())["loss"] == pytest.approx(whole, rel=1e-6)
    parameters = dict(model.named_parameters())
    for cell in found.cells[:: 2 if variant.startswith("MHA") else 1]:
        site = found.sites.get(cell.target)
        if site is None:
            changed = {cell.target: without_smallest(parameters[cell.target], cell.removed)}
        elif not site.gated:
            continue  # a whole layer: the next test
        else:
            changed = {}
            gone = unit_magnitude(site, parameters).argsort()[: cell.removed]
            for part in site.gated:
                weight = changed.setdefault(part.parameter, parameters[part.parameter].detach().clone())
                for unit in gone.tolist():
                    start = part.start + unit * part.per_unit
                    weight.narrow(part.dim, start, part.per_unit).fill_(-part.origin)
        loss = results[cell.key]["loss"]
        assert loss == pytest.approx(by_hand(model, changed), rel=1e-5), cell
        assert cell.kind == "layers" or abs(loss - whole) > 1e-7, "it removes nothing"


def test_a_convolution_behind_the_first_layer_is_applied_once() -> None:
    """Fails if what enters a later layer, which the convolution has gone through, goes through it again."""
    model = models.with_convolution()
    found, parameters = grid(model, [0.5]), dict(model.named_parameters())
    for (target, removed), metrics in measured(model, found).items():
        if target in parameters:
            changed = {target: without_smallest(parameters[target], removed)}
            assert metrics["loss"] == pytest.approx(by_hand(model, changed), rel=1e-5), target


@pytest.mark.parametrize("model_type", sorted({model_type for model_type, _ in CASES}))
def test_a_removed_layer_is_a_model_without_it(model_type: str) -> None:
    model = small(model_type)
    found = grid(model, [0.5], ["layers"])
    for cell, metrics in measure(model, LM, batches(), found, found.cells):
        stack, _, position = cell.layer.rpartition(".")
        shorter = small(model_type)
        layers = shorter.get_submodule(stack)
        del layers[int(position)]
        assert metrics["loss"] == pytest.approx(by_hand(shorter, {}), rel=1e-5)


@pytest.mark.parametrize("model_type", thinned(sorted({model_type for model_type, _ in CASES}), 4))
def test_passing_through_the_layers_before_changes_no_bit(model_type: str) -> None:
    model = small(model_type)
    found = grid(model, [0.5])
    whole = Grid(found.cells, found.sites, (), None)
    assert found.stacks and measured(model, found) == measured(model, whole)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_model_is_put_back_when_a_cell_fails() -> None:
    model = small("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    failing: Any = SimpleNamespace(evaluate=LM.evaluate, metrics=LM.metrics)
    calls = []

    def evaluated(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return LM.evaluate(*args)

    failing.evaluate = evaluated
    found = grid(model, [0.9])
    for chosen in (found, Grid([c for c in found.cells if c.target in found.sites], found.sites, found.stacks, None)):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            list(measure(model, failing, batches(), chosen, chosen.cells))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_magnitudes_are_those_of_the_units_whole_slices() -> None:
    model = small("bert")
    (site, *_) = (site for site in grid(model, [0.5]).sites.values() if site.structure == "heads")
    parameters = dict(model.named_parameters())
    owned: list[list[Tensor]] = [[] for _ in range(site.num_units)]
    for part in site.parts:
        for unit in range(site.num_units):
            piece = parameters[part.parameter].narrow(part.dim, part.start + unit * part.per_unit, part.per_unit)
            owned[unit].append(piece.flatten())
    expected = torch.stack([torch.cat(pieces).double().square().mean() for pieces in owned])
    assert torch.allclose(unit_magnitude(site, parameters).double(), expected, rtol=1e-6)


def test_counts_fractions_and_kinds() -> None:
    model = small("llama")
    found = grid(model, [0.75, 0.1, 0.75], ["mlp.*", "kv_groups", "layers"])
    assert found.kinds == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "kv_groups", "layers"]
    counts = {(cell.kind, cell.fraction): (cell.removed, cell.units) for cell in found.cells}
    assert (
        counts["kv_groups", 0.1] == (1, 4) and counts["kv_groups", 0.75] == (3, 4) and counts["layers", 1.0] == (1, 1)
    )
    assert counts["mlp.up_proj", 0.1] == (round(0.1 * 48 * 128), 48 * 128) and len(counts) == 9
    assert [cell.layer for cell in found.cells] == sorted(cell.layer for cell in found.cells)
    scores = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    assert keep_largest(scores, 2).tolist() == [[True, False], [False, True]]
    assert keep_largest(scores, 4).sum() == 0 and keep_largest(scores, 1).sum() == 3
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"A fraction of {bad:g} cannot be removed"):
            grid(model, [bad])
    with pytest.raises(ValueError, match=r"--kinds has 'mpl.\*', .* no kind of parameter .*: did you mean 'mlp.\*'"):
        grid(model, [0.5], ["mpl.*"])


def test_few_units_are_removed_as_whole_ones_once_and_under_their_own_share(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches two columns of one removal, a group that goes whole below a fraction of 1, and a share that was not."""
    from rich.console import Console

    shares = {2: ({0.5: 1, 1.0: 2}, ""), 3: ({0.25: 1, 0.75: 2, 1.0: 3}, "1/3, 2/3")}
    cells: report.Rows = []
    for units, (expected, shown) in shares.items():
        model = models.model("llama", num_attention_heads=2 * units, num_key_value_heads=units, head_dim=8)
        found = grid(model, [0.25, 0.5, 0.75, 1.0], ["kv_groups", "mlp.up_proj"])
        groups = [cell for cell in found.cells if cell.kind == "kv_groups"]
        assert {cell.fraction: cell.removed for cell in groups} == expected
        assert len({cell.key for cell in groups}) == len(groups) == len(expected) * models.LAYERS
        cells = report.rows(found, {cell.key: {"loss": 2.0} for cell in found.cells}, BASELINE)
        of_groups = [[c for c in cells if c["kind"] == "kv_groups" and c["fraction"] == f] for f in expected]
        assert ", ".join(filter(None, map(report.few_units, of_groups))) == shown
        assert not report.few_units([cell for cell in cells if cell["kind"] == "mlp.up_proj"][:1])
        Console(width=160).print(report.table(cells, BASELINE))
        assert ("2/3: 0.000, 0.000 @ 0" in capfd.readouterr().out) == (units == 3)
    mixed = [{"fraction": 0.5, "removed": removed, "units": units} for removed, units in ((1, 2), (2, 3))]
    assert report.few_units(mixed) == "50 % to 66.7 %"
    axes, labels = pytest.importorskip("matplotlib.axes").Axes, list[str]()
    monkeypatch.setattr(axes, "set_xticks", lambda _self, _at, names, **_more: labels.extend(names))
    plot.heat_map(cells, tmp_path / "map.png", "title")  # of three groups
    assert [label for label in labels if "kv" in label] == ["kv_groups 1/3", "kv_groups 2/3", "kv_groups"]


def test_a_family_that_is_not_known_has_weights_only() -> None:
    model = small("llama")
    model.config.model_type = "strange"
    found = grid(model, [0.5])
    assert found.note and "'strange'" in found.note and not found.sites and not found.stacks
    results = measured(model, found)
    model.config.model_type = "llama"
    assert results == {key: value for key, value in measured(model, grid(model, [0.5])).items() if key in results}
    with pytest.raises(ValueError):
        model.config.model_type = "strange"
        anatomy(model)


# --- on disk


CELLS = [Cell(f"model.layers.{i}.up.weight", f"model.layers.{i}", "up", 0.5, 5, 10) for i in range(3)]
BASELINE = {"loss": 2.0}


def test_finished_cells_are_found_again_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    with Journal(path, {"model": "m"}, BASELINE) as journal:
        for cell in CELLS[:2]:
            journal.add(cell, {"loss": 2.5})
    whole = path.read_bytes()
    for torn in (b'{"target": "model.lay', b'{"target": "x", "fraction": 0.5, "metrics": {"loss": 1}}'):
        path.write_bytes(whole + torn)  # the second is whole but for its end of line: the disk may hold the rest of it
        with Journal(path, {"model": "m"}, {"loss": 2.0001}) as journal:
            assert list(journal.measured) == [cell.key for cell in CELLS[:2]] and journal.baseline == BASELINE
            journal.add(CELLS[2], {"loss": 3.0})
        with Journal(path, {"model": "m"}, BASELINE) as journal:
            assert journal.measured[CELLS[2].key] == {"loss": 3.0}
    with pytest.raises(ValueError, match="was measured with model=m, and now it is n: give another --out"):
        Journal(path, {"model": "n"}, BASELINE)
    with pytest.raises(ValueError, match="on a model whose loss was 2, and this one's is 2.1"):
        Journal(path, {"model": "m"}, {"loss": 2.1})
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(ValueError, match="is damaged: remove it, or give another --out"):
        Journal(path, {"model": "m"}, BASELINE)


def flat(increases: list[float]) -> report.Rows:
    found = {cell.key: {"loss": 2.0 + more} for cell, more in zip(CELLS, increases, strict=True)}
    return report.rows(Grid(CELLS, {}, (), None), found, BASELINE)


def test_rows_and_table(tmp_path: Path, capfd: Any) -> None:
    from rich.console import Console

    cells = flat([0.5, 1.5, -0.25])
    Console(width=120).print(report.table(cells, BASELINE))
    output = capfd.readouterr().out
    assert "0.583, 1.500 @ 1" in output and "loss 2 " in output
    report.write_csv(tmp_path / "cells.csv", cells)
    with open(tmp_path / "cells.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["increase"]) for line in lines] == [0.5, 1.5, -0.25] and lines[1]["layer"] == "model.layers.1"
    assert report.short_layers(["a.0", "a.10"]) == ["0", "10"] and report.short_layers(["a.0", "b.0"]) == ["a.0", "b.0"]


def test_the_heat_map_is_a_picture_even_where_nothing_rises(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, increases in (("some", [0.5, 1.5, -0.25]), ("none", [-0.5, 0.0, -0.25])):
        plot.heat_map(flat(increases), tmp_path / f"{name}.png", "title")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_a_loss_that_is_no_number_is_the_most_whichever_layer_has_it(order: list[int]) -> None:
    increases = [math.nan, 0.5, math.inf]
    (column,) = (c for c in report.table(flat([increases[i] for i in order]), BASELINE).columns if c.justify == "right")
    assert [*column.cells] == [f"nan, nan @ {order.index(0)}"]


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_cell_that_is_no_number_leaves_the_others_their_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    """What is infinite is as dark as the highest of the others, and what is no number stays blank."""
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn, imshow = list[Any](), axes.imshow

    def noted(self: Any, values: Any, **more: Any) -> Any:
        drawn.append((values, more["norm"]))
        return imshow(self, values, **more)

    monkeypatch.setattr(axes, "imshow", noted)
    plot.heat_map(flat([broken, 0.5, 1.5]), tmp_path / "map.png", "title")
    ((values, norm),) = drawn
    assert norm.vmax == 1.5 and values[1:, 0].tolist() == [0.5, 1.5]
    assert math.isnan(values[0, 0]) if math.isnan(broken) else values[0, 0] == 1.5


def test_a_regression_adds_squared_error(tmp_path: Path, capfd: Any) -> None:
    """From the task's own metrics, none of which is called loss, to the table and a journal that goes on."""
    from rich.console import Console

    model = models.model("bert", auto=AutoModelForSequenceClassification, num_labels=1).eval()
    task: Any = base.build({"name": "regression"})
    given = [
        {
            **batch,
            "labels": torch.tensor([0.5, -1.0]),
            "sample": torch.arange(2) + 2 * i,
            "num_samples": torch.tensor(4),
        }
        for i, batch in enumerate(batches())
    ]
    found = grid(model, [0.5], ["layers"])
    baseline = evaluate(model, task, given)
    with torch.no_grad():
        answers = torch.cat([model(input_ids=batch["input_ids"]).logits[:, 0] for batch in given])
    expected = float((answers - torch.tensor([0.5, -1.0] * 2)).square().mean())
    assert "loss" not in baseline and loss_of(baseline) == pytest.approx(expected, rel=1e-5)
    results = {cell.key: metrics for cell, metrics in measure(model, task, given, found, found.cells)}
    cells = report.rows(found, results, baseline)
    increases = [results[cell.key]["mse"] - baseline["mse"] for cell in found.cells]
    assert [cell["increase"] for cell in cells] == increases and any(increases)
    Console(width=120).print(report.table(cells, baseline))
    assert f"mse {baseline['mse']:.4g}" in capfd.readouterr().out
    for again in (baseline, baseline):
        with Journal(tmp_path / "cells.jsonl", {"model": "m"}, again) as journal:
            assert journal.baseline == baseline
    with pytest.raises(ValueError, match="on a model whose loss was"):
        Journal(tmp_path / "cells.jsonl", {"model": "m"}, {name: 2 * value for name, value in baseline.items()})


# --- the command


def pat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["sensitivity", *arguments])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_the_command_goes_on_where_it_was_stopped(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    """Catches cells that are measured twice, or not at all, and files without what was measured before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plot, "available", lambda: False)
    command = ["recipe=parity", "--samples", "2", "--fractions", "0.5", "--kinds", "mlp.up_proj,ffn,layers"]
    assert pat(*command) == 0
    output = capfd.readouterr().out
    assert "6 removals of 3 kinds in 2 layers, on 2 held-out samples\n" in output and plot.MISSING in output
    out = tmp_path / "sensitivity" / "parity"
    first = json.loads((out / "sensitivity.json").read_text())
    lines = (out / "cells.jsonl").read_text().splitlines()
    (out / "cells.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert pat(*command) == 0
    assert "; 2 are in sensitivity/parity/cells.jsonl already" in capfd.readouterr().out
    assert json.loads((out / "sensitivity.json").read_text()) == first and len(first["cells"]) == 6
    assert pat(*command, "seed=1") == 2
    assert "was measured with " in capfd.readouterr().err


def test_a_model_and_a_file_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a task or a length that is asked for though the model says it, or that wins over a key."""
    config = models.config("llama")
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: config)

    def overrides(*words: str, **given: Any) -> list[str]:
        options = dict.fromkeys(("data", "task", "max_length", "samples", "config_dir")) | given
        return sensitivity._overrides(SimpleNamespace(words=list(words), **options))  # pyright: ignore

    assert overrides("recipe=sotu", samples=4) == ["data.max_eval_samples=4", "recipe=sotu"]
    found = overrides("m o/it's", "engine.dtype=bf16", data="a,b.csv", task="chat", max_length=9)
    assert found[:3] == ["train.num_steps=1", "train.global_batch_size=8", "optim.lr=1"]
    assert found[3:] == [
        "model.path='m o/it\\'s'", "data=csv", "data.train='a,b.csv'", "data.eval='a,b.csv'", "task=chat",
        "data.max_length=9", "engine.dtype=bf16",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="whose task is not known: give --task"):
        overrides("m/it", data="a.csv")
    assert overrides("m/it", "task=chat", data="a.csv")[-2:] == ["data.max_length=64", "task=chat"]
    config.architectures = ["LlamaForSequenceClassification"]
    data = {"max_length": 24, "text_column": "review", "label_column": "stars"}
    (tmp_path / "export.json").write_text(json.dumps({"config": {"data": data}}))
    assert overrides(str(tmp_path), "engine.dtype=fp32", data="a.csv")[-5:-1] == [
        "task=classification", "data.max_length=24", "data.text_column='review'", "data.label_column='stars'",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no --data FILE is given: held-out"):
        overrides("m/it")
    with pytest.raises(ValueError, match="a and b are 2 models: give one"):
        overrides("a", "b")
    with pytest.raises(ValueError, match="--data x.pdf must end in"):
        overrides("a", data="x.pdf")


def test_a_folder_and_a_file_are_measured(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PAT_CACHE", str(tmp_path / "cache"))
    model = models.model("llama", vocab_size=320)
    model.save_pretrained(tmp_path / "it's, a model")
    rows = tmp_path / "held out.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text number {i} " * 4}) + "\n" for i in range(9)))
    given = ["--data", str(rows), "--max-length", "16", "--kinds", "layers"]
    out = tmp_path / "out"
    assert pat(str(tmp_path / "it's, a model"), *given, "model.tokenizer=byte", "--out", str(out)) == 0
    found = json.loads((out / "sensitivity.json").read_text())
    assert len(found["cells"]) == models.LAYERS and found["dtype"] == "fp32"
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-4  # exported again: nearly the same loss
    model.save_pretrained(tmp_path / "it's, a model")
    assert pat(str(tmp_path / "it's, a model"), *given, "model.tokenizer=byte", "--out", str(out)) == 2
    assert "was measured with weights=" in capfd.readouterr().err
    assert pat(str(tmp_path / "it's, a model"), "--data", str(rows), "--max-length", "0") == 2
    assert "--max-length" in (said := capfd.readouterr().err) and "data.max_length" not in said


def test_an_untrained_classification_head_is_a_sentence(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PAT_CACHE", str(tmp_path / "cache"))
    models.model("bert", vocab_size=320).save_pretrained(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(9)))
    given = ["--data", str(rows), "--task", "classification", "--max-length", "16", "model.tokenizer=byte"]
    assert pat(str(tmp_path / "base"), *given, "--out", str(tmp_path / "out")) == 2
    assert "give a model that was trained on the task" in capfd.readouterr().err
    assert pat("recipe=parity", "--fractions", "half") == 2
    assert "--fractions half: give numbers with commas between them" in capfd.readouterr().err
