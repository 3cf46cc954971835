"""Cuts that are stopped and started again: the same bits as if they had not been, and only what is left is measured;
what another cut has left on disk, or a disk has damaged, is never taken over."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.calibration import journal
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.journal import Journals
from pat.pruning.calibration.walk import Layer
from pat.pruning.weights import pruner as weights_pruner
from pat.run.preemption import Preempted
from pat.schema import Config
from pat.training import calibrating
from pat.training.progress import Progress
from tests import models, one_rank
from tests.thread_ranks import run_ranks
from tests.unit.pruning.calibration import test_calibrated_gates, test_cuts
from tests.unit.pruning.calibration.test_walk import batches

AT = 1  # the step of the cut


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


class Killed(BaseException):
    """What no handler catches."""


ONCE = {"name": "one_shot", "start": AT}


def weights(criterion: Any = "wanda", sparsity: float = 0.5, schedule: Any = ONCE) -> Config:
    budget = {"name": "sparsity", "sparsity": sparsity}
    return test_cuts.config(criterion, schedule=schedule, budget=budget, params=["all-linear"])


def weighed(samples: int = 4) -> Config:
    criterion = {"name": "wanda", "gradient_samples": samples}
    return test_cuts.config(criterion, "global", schedule=ONCE, params=["all-linear"])


def gates() -> Config:
    budget = {"name": "parameters", "sparsity": 0.2}
    gate = {"name": "obs", "reconstruct": 1}
    return test_calibrated_gates.config(["ffn", "kv_groups"], budget, ONCE, gate)


def under_adapters() -> Config:
    """What is fitted is frozen, and not what a cut is told."""
    gate = {"name": "obs", "reconstruct": 1}
    made = test_calibrated_gates.config(["ffn"], test_calibrated_gates.shape(ffn=64), ONCE, gate)
    return made.changed(peft__r=3, peft__alpha=6.0)


def nothing(model: Any) -> None:
    """The model stays as it is."""


@dataclass
class Start:
    """One start of a cut, and what it did."""

    pruner: Any
    bits: dict[str, Tensor] = field(default_factory=dict)
    measured: list[int] = field(default_factory=list)  # layers
    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)


def start(
    made: Config,
    root: Path | None,
    stop_after: int | None = None,  # layers, over all walks
    family: str = "llama",
    change: Callable[[Any], None] = nothing,
    samples: list[dict[str, Tensor]] | None = None,
) -> Start:
    """Cut, or be killed in it."""
    model = models.model(family)
    change(model)
    _, pruner = one_rank.build(made, model)
    found, seen = Start(pruner), [0]

    def on_layer(index: int, number: int) -> None:
        if seen[0] == stop_after:
            raise Killed
        seen[0] += index < number

    collect = Layer.collect

    def counted(layer: Layer, *args: Any, **kwargs: Any) -> Any:
        found.measured.append(layer.index)
        return collect(layer, *args, **kwargs)

    one_rank.surround(
        pruner,
        samples=lambda number: samples or batches(),
        on_layer=on_layer,
        journals=Journals(root, say=found.said.append, warn=found.warned.append),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "collect", counted)
        with torch.no_grad():
            try:
                for each in pruner.pruners:
                    each.begin(AT)
            except Killed:
                return found
    found.bits = {name: p.detach().clone() for name, p in model.named_parameters()} | pruner.state()[0]
    return found


def same(one: Start, other: Start) -> bool:
    """Every bit, also of zeros' signs."""
    assert one.bits and one.bits.keys() == other.bits.keys()
    return all(
        torch.equal(value.contiguous().view(torch.uint8), other.bits[name].contiguous().view(torch.uint8))
        for name, value in one.bits.items()
        if value.dim()
    )


L = models.LAYERS


@pytest.mark.parametrize(
    ("family", "made", "killed", "walks", "change"),
    [
        ("gpt2", weights("wanda"), [1], 1, nothing),
        pytest.param(
            "llama", weights({"name": "alps", "iterations": 4, "reconstruct": 2}), [1, 2], 1, nothing,
            marks=pytest.mark.slow,
        ),
        ("llama", gates(), [2, L + 2], 2, nothing),
        ("gpt2", under_adapters(), [2], 1, test_calibrated_gates.adapt),
    ],
    ids=["stored inputs first", "reconstructed", "structures after a walk for costs", "under adapters"],
)  # fmt: skip
def test_killed_and_started_again_it_ends_with_the_same_bits_and_measures_what_is_left(
    family: str, made: Config, killed: list[int], walks: int, change: Any, tmp_path: Path
) -> None:
    undisturbed = start(made, None, family=family, change=change)
    for layers in killed:
        start(made, tmp_path / "calibration", layers, family, change)
    last = start(made, tmp_path / "calibration", family=family, change=change)
    assert same(last, undisturbed)
    places = [layer for _ in range(walks) for layer in range(L)][killed[-1] :]
    assert sorted(set(last.measured)) == sorted(set(places))
    per_layer = len(undisturbed.measured) // (walks * L)
    assert len(last.measured) == per_layer * len(places), "nothing is measured twice"
    taken = [L] * (killed[-1] // L) + [killed[-1] % L]
    assert last.said == [f"{n} of {L} layers of an earlier start's cut are taken over" for n in taken]
    assert not last.warned


def entries(root: Path) -> list[Path]:
    return sorted(root.glob("weights-step-00000001/layer-*.safetensors"))


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def altered(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def of_another_layer(file: Path) -> None:
    shutil.copy(file.with_name("layer-00000.safetensors"), file)


def one_weight(model: Any) -> None:
    """A norm's, of the second layer: nothing that is cut."""
    model.get_parameter("model.layers.1.input_layernorm.weight").data[0] += 1e-6


@pytest.mark.parametrize("damage", [torn, altered, of_another_layer])
def test_a_damaged_entry_is_made_again_and_those_behind_it_still_count(damage: Any, tmp_path: Path) -> None:
    made = weights()
    whole = start(made, tmp_path)
    damage(entries(tmp_path)[1])
    again = start(made, tmp_path)
    assert again.measured == [1] and same(again, whole)
    assert not start(made, tmp_path).measured


@pytest.mark.parametrize(
    ("made", "fields", "measured"),
    [
        (weights(), {"change": one_weight}, [1, 2]),
        (weights(sparsity=0.25), {}, [0, 1, 2]),
        (weights(), {"samples": batches()[:2]}, [0, 1, 2]),
        pytest.param(weights(), {"samples": batches(padded=False)}, [0, 1, 2], marks=pytest.mark.slow),
        pytest.param(weights().changed(engine__dtype="bf16"), {}, [0, 1, 2], marks=pytest.mark.slow),
    ],
    ids=["a weight", "settings", "samples", "padding", "dtype"],
)
def test_what_another_cut_has_left_is_not_taken_over(
    made: Config, fields: dict[str, Any], measured: list[int], tmp_path: Path
) -> None:
    start(weights(), tmp_path)
    other = start(made, tmp_path, **fields)
    assert other.measured == measured and same(other, start(made, None, **fields))


def test_what_other_versions_of_packages_have_left_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(weights(), tmp_path)
    monkeypatch.setattr(journal, "VERSIONS", ("0.0.1", *journal.VERSIONS[1:]))
    assert start(weights(), tmp_path).measured == [0, 1, 2]


def test_a_layer_that_is_cut_otherwise_takes_those_above_it_with_it(tmp_path: Path) -> None:
    """Would catch a chain of keys that does not hold what the layers below have come to."""
    start(weights(), tmp_path)
    other = start(weights(), tmp_path / "other", change=one_weight)
    assert other.measured == [0, 1, 2]
    shutil.copy(entries(tmp_path / "other")[1], entries(tmp_path)[1])
    entries(tmp_path)[2].unlink()
    assert start(weights(), tmp_path, change=one_weight).measured == [2]
    assert start(weights(), tmp_path).measured == [1, 2]


def relabelled() -> list[dict[str, Tensor]]:
    """The same inputs of all layers, and another loss."""
    return [batch | {"labels": batch["labels"].flip(0)} for batch in batches()]


@pytest.mark.parametrize(
    ("fields", "damage", "taken"),
    [
        ({}, None, 0),
        ({}, torn, 1),
        ({}, altered, 1),
        ({"change": one_weight}, None, 1),
        ({"samples": relabelled()}, None, 1),
        ({"made": weighed(2)}, None, 1),
    ],
    ids=["the same", "torn", "altered", "a weight", "labels", "settings"],
)
def test_the_gradients_before_a_cut_are_taken_once(
    fields: dict[str, Any], damage: Any, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, passes = weighed(), [0]

    def counted(*args: Any) -> Any:
        passes[0] += 1
        return weigh(*args)

    weigh = weights_pruner.weigh
    start(made, tmp_path)
    file = tmp_path / "weights-step-00000001" / "gradients.safetensors"
    if damage:
        damage(file)
    monkeypatch.setattr(weights_pruner, "weigh", counted)
    given: dict[str, Any] = {"made": made} | fields
    again = start(**given, root=tmp_path)
    said = "the gradients of an earlier start's cut are taken over"
    assert passes == [taken] and (said in again.said) == (not taken)
    assert same(again, start(**given, root=None))


def full(tensors: dict[str, Tensor], path: Path, head: dict[str, str]) -> None:
    save_file(tensors, path, head)
    if "layer-00001" in path.name:
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("place", ["file/calibration", "full"])
def test_a_folder_that_cannot_be_written_costs_one_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(journal, "save_file", full)
    found = start(weights(), tmp_path / place)
    assert same(found, start(weights(), None))
    (said,) = found.warned
    assert ("No space left" in said or "Not a directory" in said) and "the cut goes on" in said and place in said
    assert not (tmp_path / "full").exists(), "what is there would be missing for the checkpoint"


def test_the_folder_goes_with_the_first_checkpoint_that_holds_the_cut(tmp_path: Path) -> None:
    found = start(weights(), tmp_path / "calibration")
    folder = tmp_path / "calibration"
    later, another = folder / "weights-step-00000002", folder / "more-weights-step-00000001"
    later.mkdir()
    another.mkdir()
    (before,) = (each for each in found.pruner.pruners)
    before.selected_at = 0  # a checkpoint of a step before the cut: an earlier start's entries stay
    found.pruner.saved()
    assert len(entries(folder)) == L
    before.selected_at = 1
    found.pruner.saved()
    assert sorted(folder.iterdir()) == [another, later]
    another.rmdir()
    before.selected_at = 2
    found.pruner.saved()
    assert not folder.exists()


def test_a_later_cut_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    """Would catch a copy of the model for every step of a schedule."""
    rising = {"name": "linear", "start": AT, "end": 3, "hard_from": 4, "initial": 0.2}
    found = start(weights(schedule=rising), tmp_path)
    found.pruner.weight_pruners[0].begin(2)
    assert [folder.name for folder in tmp_path.iterdir()] == ["weights-step-00000002"]


def test_ranks_agree_and_get_the_same_bits_from_rank_0(tmp_path: Path) -> None:
    """Ranks that see other disks: rank 0's decides. Samples of another rank are others."""
    value = torch.tensor([-0.0, 1.5, 0.0])

    def work(shift: float, folder: str) -> Any:
        def of_rank(comm: Comm) -> Any:
            walk: Any = SimpleNamespace(
                hidden=HiddenStates([torch.full((2,), shift * comm.rank)]), real=[], dtype=torch.float32, stack="h",
                follow=False, gates={}, layers=[0], parameters=lambda index: ["w"], whole=lambda name: torch.ones(2),
            )  # fmt: skip
            layer: Any = SimpleNamespace(walk=walk, index=0)
            kept = Journals(tmp_path / (folder if comm.rank == 0 else "nowhere"), comm).open("a", 0, ())
            known = kept.known(layer)
            if known is not None:
                return dict(known)
            kept.put("keep|w", torch.tensor([[True], [False]]))
            kept.put("w", value if comm.rank == 0 else value + 1.0)
            kept.write(layer)
            return None

        return run_ranks(2, of_rank)[0]

    assert work(1.0, "here") == [None, None]
    for found in work(1.0, "here"):
        assert torch.equal(found["keep|w"], torch.tensor([[True], [False]]))
        assert torch.equal(found["w"].view(torch.uint8), value.view(torch.uint8))
    assert not (tmp_path / "nowhere").exists()
    assert work(2.0, "here") == [None, None] and work(1.0, "elsewhere") == [None, None]


@pytest.mark.parametrize(
    ("step", "saved", "trained_s", "kept", "leaves"),
    [
        (0, -1, 0.0, True, True),
        (9, 9, 900.0, True, True),
        (9, 5, 0.0, True, True),
        (9, 5, 900.0, True, False),
        (0, -1, 0.0, False, False),
    ],
    ids=["nothing trained", "all saved", "little to repeat", "much to repeat", "no journal"],
)
def test_a_request_to_stop_is_heard_between_layers_where_that_loses_less_than_the_rest_of_the_cut_takes(
    step: int,
    saved: int,
    trained_s: float,
    kept: bool,
    leaves: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, said = [time.perf_counter()], list[str]()
    monkeypatch.setattr(calibrating.time, "perf_counter", lambda: clock[0])
    training: Any = SimpleNamespace(
        progress=Progress(step=step, saved_step=saved), due=SimpleNamespace(last_save=time.monotonic() - trained_s),
        agree=lambda due: (asked[0], due),
        tracker=SimpleNamespace(say=said.append, log=lambda *_: None, layer=lambda *_: None), aside_s=0.0,
        config=SimpleNamespace(train=SimpleNamespace(num_steps=10)), run=SimpleNamespace(path=tmp_path),
    )  # fmt: skip
    journals: Any = SimpleNamespace(kept=kept)
    cut = calibrating.Calibrating(training, journals)
    asked, on_layer = [False], cut.on_layer
    for walk, where in ((cut.on_gradients, "while the loss's gradients were taken"), (on_layer, "in the cut")):
        walk(0, 3)
        clock[0] += 60.0
        asked[0] = True
        if leaves:
            with pytest.raises(Preempted, match=f"{where} at step {step}"):
                walk(1, 3)
        asked[0] = False
    on_layer(0, 3)
    clock[0] += 60.0
    asked[0] = True
    if leaves:
        with pytest.raises(Preempted, match=f"in the cut at step {step}, after 1 of 3 layers"):
            on_layer(1, 3)
    else:
        on_layer(1, 3)
        on_layer(2, 3)
        assert sum("stopping after the cut, of which 2 of 3 layers are left" in text for text in said) == 1
    on_layer(3, 3)  # the loop saves and leaves


def test_taking_the_losss_gradients_counts_as_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if minutes of it are taken for training, whose throughput then never was, or look like a rank that hangs. A
    cut is one line of the log."""
    clock, beats, layers, logged = [0.0], list[bool](), list[tuple[Any, ...]](), list[dict[str, float]]()
    monkeypatch.setattr(calibrating.time, "perf_counter", lambda: clock[0])
    training: Any = SimpleNamespace(
        progress=Progress(step=3, saved_step=3), agree=lambda due=False: beats.append(due) or (False, due), aside_s=0.0,
        tracker=SimpleNamespace(
            layer=lambda *at: layers.append(at), log=lambda figures, step: logged.append(figures)
        ),
        config=SimpleNamespace(train=SimpleNamespace(num_steps=10)),
    )  # fmt: skip
    cut = calibrating.Calibrating(training, Journals())
    for gradients_s in (40.0, 0.0):
        if gradients_s:
            for index in range(5):  # two layers, there and back
                cut.on_gradients(index, 4)
                clock[0] += gradients_s / 4 * (index < 4)
            assert len(beats) == 5
        for index in range(3):
            cut.on_layer(index, 2)
            clock[0] += 5.0 * (index < 2)
    assert logged == [{"calibration/seconds": 50.0}, {"calibration/seconds": 10.0}]
    assert training.aside_s == training.progress.calibration_seconds == 60.0
    assert layers[:2] == [(calibrating.GRADIENTS, 0, 4, 3, None), (calibrating.GRADIENTS, 1, 4, 3, 30.0)]
    assert layers[5:8] == [
        (calibrating.CUT, 0, 2, 3, None),
        (calibrating.CUT, 1, 2, 3, 5.0),
        (calibrating.CUT, 2, 2, 3, 0.0),
    ]


def test_gates_outside_of_the_weights_are_part_of_what_a_cut_depends_on(tmp_path: Path) -> None:
    def origin(gates: dict[str, Tensor]) -> str:
        walk: Any = SimpleNamespace(
            hidden=HiddenStates([torch.ones(2)]), real=[], dtype=torch.float32, stack="h", follow=False
        )
        walk.gates = gates
        return Journals(tmp_path).open("narrow", AT, "settings")._origin(walk)

    assert len({origin({}), origin({"a": torch.zeros(1)}), origin({"b": torch.zeros(1)})}) == 3


def test_what_others_keep_in_the_folder_stays(tmp_path: Path) -> None:
    """`attach(calibration_dir=OUT)` may name the folder to which DeepSpeed saves."""
    for name in (
        "global_step10/model.pt",
        "latest",
        "weights-step-00000002/layer.safetensors",
        "my-step-2/x",
        "my-step-00000002/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Journals(tmp_path).remove(["weights"])
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["global_step10", "latest", "my-step-00000002", "my-step-2"]
