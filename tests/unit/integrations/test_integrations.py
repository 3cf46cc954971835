"""Settings of a pruner in somebody else's trainer: what is read, what is refused, how groups are split."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from transformers import TrainerState

from pat.checkpoint import retention
from pat.common.comm import LOCAL
from pat.common.files import renew
from pat.integrations import saved, waiting
from pat.integrations.attach import Pruning
from pat.integrations.groups import split_groups
from pat.integrations.hf import PruningCallback
from pat.integrations.samples import RowsOf, taken
from pat.integrations.settings import Settings
from pat.pruning.types import PromiseBroken
from pat.pruning.weights.matrices import Matrices

WEIGHTS: dict[str, Any] = {
    "params": ["*.weight"],
    "granularity": "weight",
    "criterion": "magnitude",
    "budget": {"name": "sparsity", "sparsity": 0.5},
    "schedule": {"name": "cubic", "start": 0.1, "end": 0.6},
}


def given(**changes: Any) -> dict[str, Any]:
    return {"pruners": {"weights": {k: v for k, v in (WEIGHTS | changes).items() if v is not None}}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "must have `pruners`"),
        ({"pruners": [WEIGHTS]}, "must have `pruners`: a mapping of named pruners"),
        ({"pruners": {"a": WEIGHTS}, "optim": {}}, "has optim; allowed: pruners, seed, kernels, keep_last"),
        ({"pruners": {"a": WEIGHTS}, "defaults": []}, "name each method"),
        (given(budget=None), "no value for pruners.weights.budget"),
        (given(paramz=["*"]), "paramz"),
        ({"pruners": {"a": WEIGHTS}, "kernels": "fast"}, "allowed: auto, compile, eager"),
        ({"pruners": {"a": WEIGHTS}, "keep_last": 0}, "keep_last is 0; allowed: 1 or more"),
        ({"pruners": {"a": WEIGHTS}, "keep_last": True}, "keep_last is True; allowed: 1 or more"),
        ({"pruners": {"a": WEIGHTS}, "keep_last": "two"}, "keep_last is 'two'; allowed: 1 or more"),
    ],
)
def test_unknown_and_missing_keys_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("`", ".")):
        Pruning(settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"criterion": "magnitud"}, "There is no criterion called 'magnitud'"),
        ({"scope": "layer"}, "allowed are global, matrix, row"),
        ({"schedule": {"name": "cubic", "start": 0, "end": 90}}, "90"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_number_of_steps(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Pruning(given(**changes)).attach(torch.nn.Linear(2, 2), num_steps=50)


def test_the_examples_settings_are_read(repository: Path) -> None:
    settings = Settings.read(repository / "docs" / "examples" / "pruning.yaml")
    config = settings.config(100, task={"name": "causal_lm"})
    assert config.pruners["weights"].budget.sparsity == 0.5 and config.train.num_steps == 100
    assert settings.owners(Matrices({"x.mlp.up.weight": (4, 4), "x.mlp.up.bias": (4,), "head.weight": (4, 4)})) == {
        "x.mlp.up.weight": "weights"
    }


def test_the_seed_is_the_users_and_structures_own_no_matrices() -> None:
    """Gates multiply in the forward: the weights of their units need no param group of their own."""
    ffn = {
        "structures": ["ffn"], "gate": "magnitude", "params": ["*.ffn.weight"],
        "budget": {"name": "shape", "keep": {"ffn": 2}}, "schedule": {"name": "cubic", "start": 1, "end": 5},
    }  # fmt: skip
    settings = Settings.read({"pruners": {"weights": WEIGHTS | {"params": ["*.up.weight"]}, "gates": ffn}, "seed": 7})
    assert settings.config().seed == 7 and Settings.read(given()).config().seed == 0
    assert settings.owners(Matrices({"a.up.weight": (4, 4), "a.ffn.weight": (4, 4)})) == {"a.up.weight": "weights"}


def test_groups_are_split_by_pruner_and_keep_their_settings() -> None:
    a, b, c = (torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    groups = [{"params": [a, b], "lr": 0.1, "weight_decay": 0.5}, {"params": [c], "lr": 0.2, "weight_decay": 0.0}]
    found, _ = split_groups(groups, {id(a): "weights", id(b): "", id(c): ""})
    assert [[id(p) for p in group["params"]] for group in found] == [[id(b)], [id(c)], [id(a)]]
    assert [(group["lr"], group["weight_decay"]) for group in found] == [(0.1, 0.5), (0.2, 0.0), (0.1, 0.5)]


@pytest.mark.parametrize(("config", "kept"), [({}, 0.0), ({"bf16": {"enabled": True}}, 0.7)])
def test_gradients_are_clipped_once(config: dict[str, Any], kept: float) -> None:
    """In fp32 without ZeRO the pruner clips, so DeepSpeed must not; else DeepSpeed does, by the pruner's norm."""
    model = torch.nn.Linear(2, 2)
    pruning = Pruning(given())
    pruning.model = model
    given_config = {"gradient_clipping": 0.7, "zero_optimization": {"stage": 0}} | config
    found = pruning.prepare({"model": model, "config": given_config})
    assert (pruning.clipping, found["config"]["gradient_clipping"]) == (0.7, kept)
    sharded = pruning.prepare({"model": model, "config": given_config | {"zero_optimization": {"stage": 2}}})
    assert sharded["config"]["gradient_clipping"] == 0.7


@pytest.mark.parametrize(("step", "checked"), [(50, 1), (49, 0)])
def test_the_callback_checks_a_run_that_went_to_its_end(step: int, checked: int) -> None:
    callback, calls = PruningCallback(given()), []
    callback.pruning.check = lambda: calls.append(1)  # type: ignore[method-assign]
    state = TrainerState(global_step=step, max_steps=50)
    early: Any = nullcontext() if checked else pytest.warns(UserWarning, match="ended at step 49 of 50, .* not reached")
    with early:
        callback.on_train_end(None, state, None)  # type: ignore[arg-type]
    assert len(calls) == checked


def trainer_arguments(**changes: Any) -> Any:
    set_to = {"load_best_model_at_end": False, "auto_find_batch_size": False, "output_dir": "out"}
    set_to |= {"save_only_model": False, "deepspeed": None}
    return SimpleNamespace(**set_to | changes)


@pytest.mark.parametrize("name", ["load_best_model_at_end", "auto_find_batch_size", "save_only_model"])
def test_a_trainer_that_would_undo_the_pruning_is_refused(name: str) -> None:
    control: Any = None
    callback = PruningCallback(given())
    with pytest.raises(ValueError, match=name):
        callback.on_init_end(trainer_arguments(**{name: True}), TrainerState(), control, model=torch.nn.Linear(2, 2))
    assert callback.pruning.model is None


def test_the_callback_starts_the_pruner_for_all_steps_of_the_trainer() -> None:
    control: Any = None
    callback, started = PruningCallback(given()), []
    state, arguments = TrainerState(max_steps=50), trainer_arguments()
    callback.pruning.start = started.append  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="when it is made"):
        callback.on_train_begin(arguments, state, control)
    callback.pruning.model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no DeepSpeed engine"):
        callback.on_train_begin(arguments, state, control)
    with pytest.raises(ValueError, match="another model than it was made with, as with model_init"):
        callback.on_train_begin(trainer_arguments(deepspeed="zero2.json"), state, control)
    callback.pruning.engine = object()
    callback.on_train_begin(arguments, state, control)
    assert started == [50] and callback.pruning.calibration_dir == Path("out/calibration")


def test_a_pruner_that_never_started_is_a_broken_promise() -> None:
    with pytest.raises(PromiseBroken, match="never started"):
        Pruning(given()).check()


@pytest.mark.parametrize(("keep_last", "kept"), [("default", [30, 40]), (3, [20, 30, 40]), (None, [10, 20, 30, 40])])
def test_a_folder_keeps_the_newest_states(
    keep_last: Any, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bare loop saves one step after the other into one folder; one that is gone is named when it is loaded."""
    settings = Settings.read(given() | ({} if keep_last == "default" else {"keep_last": keep_last}))
    engine: Any = SimpleNamespace(global_steps=0, module=torch.nn.Linear(2, 2))
    pruner: Any = SimpleNamespace(layout=SimpleNamespace(world=LOCAL, name="zero12"))

    def write(engine: Any, pruner: Any, root: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        folder = root / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        retention.set_latest(root, folder)
        return folder

    monkeypatch.setattr(saved.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(saved.store, "save", write)
    monkeypatch.setattr(saved, "_check_opens", lambda folder, layout: None)  # DeepSpeed has written nothing
    config = settings.config(50, task={"name": "causal_lm"})
    for engine.global_steps in (10, 20, 30, 40):
        saved.save(
            tmp_path, f"global_step{engine.global_steps}", engine, pruner, config, None, settings.keep_last, True
        )
    found = retention.steps(tmp_path / "pat" / "checkpoints")
    assert [int(path.name.removeprefix("step-")) for path in found] == kept
    engine.global_steps = 5
    words = f"keeps no state of the pruner of step 5, but of {', '.join(map(str, kept))}"
    with pytest.raises(ValueError, match=words):
        saved.load(tmp_path, engine, pruner, config)


def test_model_and_tokenizer_of_older_states_are_there_at_every_moment(tmp_path: Path) -> None:
    """Would catch a kill in a save that leaves every state of the folder without a tokenizer to be exported with."""
    folder, seen = tmp_path / "tokenizer", list[bool]()

    def writes(**files: str) -> Any:
        def write(into: Path) -> None:
            seen.append((folder / "vocab").is_file())
            (into / "more").mkdir()
            for name, text in files.items():
                (into / name).write_text(text)
            (into / "more" / "template").write_text("nested")

        return write

    renew(folder, writes(vocab="a", config="1", gone="x"))
    before = (folder / "vocab").stat()
    renew(folder, writes(vocab="a", config="2"))
    assert seen == [False, True]
    assert {p.name: p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        "vocab": "a",
        "config": "2",
        "template": "nested",
    }
    after = (folder / "vocab").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "written again"
    assert list(tmp_path.iterdir()) == [folder]

    def killed(into: Path) -> None:
        (into / "vocab").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        renew(folder, killed)
    assert (folder / "vocab").read_text() == "a"


@pytest.mark.parametrize(
    "how", [{"config": "ds.json"}, {"config_params": "ds.json"}, {"args": SimpleNamespace(deepspeed_config="ds.json")}]
)
def test_a_config_in_a_file_is_refused_each_time(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a run that prunes nothing, as the optimizer in DeepSpeed's file is not seen."""

    def initialize(
        args: Any = None, model: Any = None, optimizer: Any = None, config: Any = None, config_params: Any = None
    ) -> None:
        raise AssertionError("it makes an engine without the pruner")

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setattr(waiting, "_waiting", [])
    model = torch.nn.Linear(2, 2)
    Pruning(given()).attach(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="config to deepspeed.initialize as a dict"):
            deepspeed.initialize(model=model, **how)


class PlainDeepSpeed:
    """An engine that only has its optimizer; `failures` are raised first, one a call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> None:
        self.failures = list(failures)
        monkeypatch.setattr(deepspeed, "initialize", self.initialize)
        monkeypatch.setattr(waiting, "_waiting", [])

    def initialize(self, model: Any = None, optimizer: Any = None, config: Any = None) -> tuple[Any, ...]:
        if self.failures:
            raise self.failures.pop(0)
        return (SimpleNamespace(basic_optimizer=optimizer),)


def initialize(model: torch.nn.Module, optimizer: Any = torch.optim.AdamW) -> None:
    deepspeed.initialize(model=model, optimizer=optimizer(model.parameters()), config={})


def test_another_function_in_the_place_of_ours_is_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a model that trains without its pruner, because an earlier one still waits for its engine."""
    plain = PlainDeepSpeed(monkeypatch)
    Pruning(given()).attach(torch.nn.Linear(2, 2))
    monkeypatch.setattr(deepspeed, "initialize", plain.initialize)
    Pruning(given()).attach(torch.nn.Linear(2, 2))
    assert deepspeed.initialize != plain.initialize


def test_the_last_attach_wins_and_what_failed_is_tried_again_with_the_pruner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: the settings of a notebook's cell that ran before; and a second try that prunes nothing."""
    plain, model, took = PlainDeepSpeed(monkeypatch, RuntimeError("too large")), torch.nn.Linear(2, 2), list[Pruning]()
    Pruning(given()).attach(model)
    last = Pruning(given()).attach(model)
    with pytest.raises(RuntimeError, match="too large"):
        initialize(model)
    with pytest.raises(ValueError, match="the optimizer is SGD"):
        initialize(model, torch.optim.SGD)
    monkeypatch.setattr(Pruning, "took", lambda self, engine: took.append(self))
    initialize(model)
    assert took == [last] and deepspeed.initialize == plain.initialize


def test_a_model_in_which_the_pruner_has_failed_gets_no_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was installed in it would still work; and without the pruner it would train as if nothing was asked."""
    PlainDeepSpeed(monkeypatch)
    model = torch.nn.Linear(2, 2)
    pruning = Pruning(given()).attach(model)

    def fails(engine: Any) -> None:
        pruning.engine = engine
        raise ValueError("too few samples")

    pruning.took = fails  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="too few samples"):
        initialize(model)
    for again in (initialize, Pruning(given()).attach):
        with pytest.raises(ValueError, match="failed in an earlier engine of this model: make the model anew"):
            again(model)


def test_untested_keys_of_deepspeed_are_warned_of_in_an_engine_of_the_callers_own() -> None:
    model = torch.nn.Linear(4, 4)
    pruning = Pruning(given())
    pruning.model = model
    plain = {"train_batch_size": 4, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW"}}
    optimizer = torch.optim.AdamW(model.parameters())
    pruning.prepare({"config": plain, "optimizer": optimizer})
    with pytest.warns(UserWarning, match="never tested with these keys of DeepSpeed: compile.deepcompile"):
        pruning.prepare({"config": plain | {"compile": {"deepcompile": True}}, "optimizer": optimizer})
    with pytest.raises(ValueError, match="the DeepSpeed config sets zero_optimization.zenflow="):
        pruning.prepare({"config": {"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "optimizer": optimizer})


def test_calibration_rows_of_a_loader_are_shared_out_and_leave_random_numbers_alone() -> None:
    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor(rows)[:, None], "noise": torch.rand(1)}

    loader = torch.utils.data.DataLoader(list(range(10)), batch_size=4, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for rank, rows in ((0, [[0, 2], [4, 6], [8]]), (1, [[1, 3], [5, 7], [9]])):
        own = RowsOf(loader, 2, rank, 2)
        for _ in range(2):  # at every cut from the first row
            assert [batch["input_ids"][:, 0].tolist() for batch in own] == rows
    assert torch.equal(torch.rand(2), expected)
    (taken_,) = taken(RowsOf(loader, 2, 0, 1), 2, LOCAL)
    assert taken_["input_ids"].tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="the training data is a stream: give PruningCallback `samples`"):
        next(iter(RowsOf(SimpleNamespace(dataset=iter([1]), collate_fn=collate), 2, 0, 1)))


def test_samples_are_drawn_as_far_as_they_are_read_and_once() -> None:
    """Would catch: a whole data set in memory, or other samples at a cut than at the start."""
    drawn = list[int]()

    def endless() -> Iterator[dict[str, torch.Tensor]]:
        for number in count():
            drawn.append(number)
            yield {"input_ids": torch.full((4, 2), number)}

    samples = Pruning(given(), endless()).samples
    assert samples is not None
    first, again = (taken(samples, 10, LOCAL) for _ in range(2))
    assert [int(batch["input_ids"][0, 0]) for batch in first] == [0, 1, 2] and len(drawn) <= 4
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert len(taken(samples, 20, LOCAL)) == 5


@pytest.mark.parametrize(("batch", "name"), [([torch.zeros(2)], "list"), ({"pixels": torch.zeros(2)}, "dict")])
def test_batches_that_no_model_takes_are_refused(batch: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"`samples` has a {name}, but a batch is .* a mapping with input_ids"):
        taken([batch], 2, LOCAL)


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    pruning = Pruning(given())
    pruning.model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that trains"):
        pruning.prepare({"config": {"train_batch_size": 4}})


def test_a_name_of_the_scripts_own_for_initialize_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from deepspeed import initialize` before `attach`: by that name the model would train without its pruner."""
    PlainDeepSpeed(monkeypatch)
    script = ModuleType("their_script")
    monkeypatch.setitem(sys.modules, "their_script", script)
    monkeypatch.setitem(sys.modules, "wandb_that_is_blocked", None)  # so that nobody imports it
    plain = deepspeed.initialize
    monkeypatch.setattr(deepspeed, "initialize", lambda **named: plain(**named))
    script.begin = deepspeed.initialize  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="their_script has deepspeed's `initialize` by a name of its own"):
        Pruning(given()).attach(torch.nn.Linear(2, 2))


def test_what_only_says_that_it_is_a_module_has_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library of cffi (cryptography loads one): without `__dict__`."""

    class Library:
        __slots__ = ()
        __class__ = ModuleType  # type: ignore[assignment]

    library: Any = Library()
    assert isinstance(library, ModuleType) and not hasattr(library, "__dict__")
    monkeypatch.setitem(sys.modules, "_openssl.lib", library)
    PlainDeepSpeed(monkeypatch)
    Pruning(given()).attach(torch.nn.Linear(2, 2))


def test_an_engine_of_a_wrapper_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of torch.compile(model): without its pruner it would train as if nothing was asked."""
    PlainDeepSpeed(monkeypatch)
    model = torch.nn.Linear(2, 2)
    Pruning(given()).attach(model)
    with pytest.raises(ValueError, match="this engine is given a wrapper of the model that `attach` was given"):
        initialize(torch.nn.Sequential(model))
    initialize(torch.nn.Linear(2, 2))  # another model
