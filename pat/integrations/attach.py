"""The same pruner on a DeepSpeed engine that somebody else builds, steps, saves and loads.

    attach(model, settings, num_steps=1000)   before deepspeed.initialize, or what calls it (Accelerate, HF Trainer)
    deepspeed.initialize(...)                 as ever: prunable weights get param groups of their own, which existing
                                              schedulers drive, and the pruner binds
    engine.step()                             as ever: the pruner's step, at the boundary of accumulation
    engine.save_checkpoint(DIR), load_checkpoint(DIR)   as ever: the pruner's state is in DIR/pat

Trainers call `deepspeed.initialize` deep inside and offer no place between the optimizer and the engine. So `attach`
replaces that one function until it is called for the attached model, in `waiting.py`; other models pass through.
Everything else is a method of the one engine that it returns. The step of a run is DeepSpeed's own `global_steps`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pat.common.comm import Comm
from pat.integrations import samples as samples_
from pat.integrations import saved
from pat.integrations.groups import follow, give_back_decay, note_decay, split_groups, split_in_place
from pat.integrations.settings import Settings
from pat.integrations.waiting import await_initialize
from pat.pruning.calibration.calibrator import Surroundings
from pat.pruning.calibration.journal import Journals
from pat.pruning.pruner import Pruner, StepStats
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.types import PromiseBroken
from pat.pruning.weights.matrices import Matrices
from pat.zero import config_keys

_log = logging.getLogger("pat")


def attach(
    model: nn.Module,
    settings: Mapping[str, Any] | str | Path,
    num_steps: int,
    tokenizer: Any = None,
    samples: Iterable[samples_.Batch] | None = None,
    calibration_dir: str | Path | None = None,
) -> Pruning:
    """Prune `model` in the DeepSpeed engine that it gets next, over `num_steps` optimizer steps.

    settings: a mapping or a YAML file {pruners: {NAME: ...}, seed, kernels} as conf/config.yaml describes it, and
    `keep_last`, how many states of the pruner one folder keeps (2; null: all). The tokenizer is only needed to export a
    checkpoint with it. `samples`: this rank's batches, as the model takes them, for methods that are calibrated (alps,
    wanda, obs, ...); on all ranks as many, of one size. `calibration_dir`: where rank 0 keeps the finished layers of a
    calibrated cut until a checkpoint holds it, so that a cut that is killed goes on there; None: it begins again.

    Returns the pruner's handle: its `figures()` are those of the last step, its `check()` proves the promises at the
    end. Raises ValueError for settings that do not exist or do not fit together; deepspeed.initialize then raises it
    for what the model, its engine or the samples do not allow.
    """
    return Pruning(settings, samples, calibration_dir).attach(model, tokenizer, num_steps)


class Pruning:
    """A pruner and its place in a foreign trainer, as `attach` returns it."""

    def __init__(
        self,
        settings: Mapping[str, Any] | str | Path,
        samples: Iterable[samples_.Batch] | None = None,
        calibration_dir: str | Path | None = None,
    ) -> None:
        self.settings = Settings.read(settings)
        self.calibration_dir = None if calibration_dir is None else Path(calibration_dir)
        self.samples: Iterable[samples_.Batch] | None = None if samples is None else samples_.Kept(samples)
        self.model: nn.Module | None = None
        self.engine: Any = None
        self.pruner: Pruner | None = None
        self.stats: StepStats | None = None  # of the last step
        self._undo: Callable[[], None] = _nothing  # puts the user's optimizer back
        self._loaded: Path | None = None  # a checkpoint that was loaded before the number of steps was known

    # -- before DeepSpeed ------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, tokenizer: Any = None, num_steps: int | None = None) -> Pruning:
        """Wait for the model's engine. Without `num_steps`, `start` has to be called before the first forward."""
        self.model, self.tokenizer, self.num_steps = model, tokenizer, num_steps
        if num_steps is not None:
            self.settings.config(num_steps)
        await_initialize(self)
        return self

    def prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """deepspeed.initialize's arguments, with prunable weights in param groups of their own."""
        assert self.model is not None
        key = "config" if arguments.get("config") is not None else "config_params"
        config = arguments.get(key)
        if not isinstance(config, dict):
            raise ValueError("give DeepSpeed's config to deepspeed.initialize as a dict: json.load(open(PATH))")
        config_keys.refuse(config, "the DeepSpeed config", config_keys.OF_THE_CALLER)
        if untested := config_keys.untested(config, config_keys.OF_THE_CALLER):
            warnings.warn(f"pruning was never tested with these keys of DeepSpeed: {', '.join(untested)}", stacklevel=2)
        owner = self.settings.owners(Matrices.of(self.model))
        of_param = {id(p): owner.get(n, "") for n, p in self.model.named_parameters()}
        arguments = dict(arguments)
        if isinstance(arguments.get("optimizer"), torch.optim.Optimizer):
            self._origins, self._undo = split_in_place(arguments["optimizer"], of_param)
        elif arguments.get("optimizer") is None:
            given: list[Any] = list(arguments.get("model_parameters") or ())
            given = given or [p for p in self.model.parameters() if p.requires_grad]
            if not given:
                raise ValueError("the model has no parameter that trains, and the pruner works in the optimizer's step")
            groups: list[dict[str, Any]] = given if isinstance(given[0], dict) else [{"params": given}]
            arguments["model_parameters"], self._origins = split_groups(groups, of_param)
        else:
            raise ValueError("give deepspeed.initialize an optimizer, not a function that makes one")
        self.clipping = float(config.get("gradient_clipping", 0.0))
        low = any(config.get(name, {}).get("enabled") for name in ("bf16", "bfloat16", "fp16"))
        if not low and not config.get("zero_optimization", {}).get("stage", 0):
            arguments[key] = config | {"gradient_clipping": 0.0}  # the pruner clips by the masked norm itself
        return arguments

    def put_back(self) -> None:
        """No engine was made: what the user's optimizer holds is whole again, for the next attempt."""
        undo, self._undo = self._undo, _nothing
        undo()

    # -- after DeepSpeed -------------------------------------------------------------------------------------------

    def took(self, engine: Any) -> None:
        """Take the model's engine, and add the pruner to its step, save and load."""
        _check_optimizer(engine.basic_optimizer)
        self.engine, self._undo = engine, _nothing
        note_decay(engine.basic_optimizer.param_groups)
        self._plain = {name: getattr(engine, name) for name in ("step", "save_checkpoint", "load_checkpoint")}
        engine.step, engine.save_checkpoint, engine.load_checkpoint = self._step, self._save, self._load
        if self.num_steps is not None:
            self.start(self.num_steps)

    def start(self, num_steps: int) -> None:
        """Bind the pruner for a run of `num_steps` optimizer steps, and go on from a loaded state. Collective."""
        engine = self.engine
        self.num_steps = num_steps
        facts = saved.facts(engine, self.clipping)
        self.config = self.settings.config(num_steps, **facts)
        self.pruner = Pruner(self.config)
        self.pruner.attach(engine.module)
        self.pruner.bind(engine)
        if self._loaded is not None:
            saved.load(self._loaded, engine, self.pruner, self.config)
        elif engine.global_steps:
            raise ValueError(
                f"DeepSpeed's engine stands at step {engine.global_steps} without the pruner's state: attach before "
                "its first step, and load a checkpoint that has a `pat` folder"
            )
        self.pruner.calibrator.surroundings = self._surroundings(self.pruner.layout.world)
        self._check_samples(self.pruner)
        self.pruner.begin(engine.global_steps)

    def _surroundings(self, world: Comm) -> Surroundings:
        given: dict[str, Any] = {}
        if self.samples is not None:
            given["samples"] = partial(samples_.taken, self.samples, world=world)
        if self.calibration_dir is not None:
            say, warn = (partial(_said_once, world, how) for how in (_log.info, _log.warning))
            given["journals"] = Journals(self.calibration_dir, world, say, warn)
        return Surroundings(**given)

    def _check_samples(self, pruner: Pruner) -> None:
        """For the cuts that are still to come; what is wrong with them is said now. ValueError. Collective."""
        for each in pruner.pruners:
            if each.hardened or not (needs := each.calibration):
                continue
            if self.samples is None:
                raise ValueError(
                    f"{needs.key} is calibrated on samples: give attach `samples`, some batches of this rank"
                )
            pruner.calibrator.surroundings.samples(needs.num_samples)
        pruner.check_calibration()

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine
        managed = getattr(engine, "managed_gradient_accumulation", lambda: True)()
        if managed and not engine.is_gradient_accumulation_boundary():
            return self._plain["step"](*args, **kwargs)
        if self.pruner is None:
            raise ValueError("the pruner does not know the number of steps: give attach num_steps, or call start")
        assert not args and not kwargs, "the pruner's step takes no arguments"
        groups = engine.basic_optimizer.param_groups
        follow(groups, self._origins)
        note_decay(groups)
        engine.step = self._plain["step"]  # the original step, which the pruner calls in its own
        try:
            self.stats = self.pruner.step(engine.global_steps)
        finally:
            give_back_decay(groups)
            engine.step = self._step
        return None

    def _save(
        self,
        save_dir: str | Path,
        tag: Any = None,
        client_state: Mapping[str, Any] = MappingProxyType({}),
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
    ) -> Any:
        """DeepSpeed's own, and the pruner's state; `latest` names the new tag only when both are whole."""
        tag = f"global_step{self.engine.global_steps}" if tag is None else str(tag)
        note_decay(self.engine.basic_optimizer.param_groups)
        if exclude_frozen_parameters:
            warnings.warn("frozen parameters are saved, too: pat export would miss them", stacklevel=2)
        bare = self.pruner is None
        result = self._plain["save_checkpoint"](save_dir, tag, dict(client_state), save_latest=save_latest and bare)
        if self.pruner is not None:
            saved.save(
                Path(save_dir), tag, self.engine, self.pruner, self.config, self.tokenizer, self.settings.keep_last,
                save_latest,
            )  # fmt: skip
            if self.pruner.layout.world.rank == 0:
                self.pruner.saved()
        return result

    def _load(self, load_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        saved.check(Path(load_dir), self.settings.config())
        note_decay(self.engine.basic_optimizer.param_groups)
        result = self._plain["load_checkpoint"](load_dir, *args, **kwargs)
        give_back_decay(self.engine.basic_optimizer.param_groups)  # earlier versions saved the pruner's own
        if result[0] is not None:
            self._loaded = Path(load_dir)
            if self.pruner is not None:
                saved.load(self._loaded, self.engine, self.pruner, self.config)
                self.pruner.begin(self.engine.global_steps)
        return result

    # -- what it says ----------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Phase, sparsity and target after the last step, for a log line."""
        if self.pruner is None or self.stats is None:
            return {}
        step = self.engine.global_steps - 1
        figures = {
            "pruning/phase": self.pruner.phase(step),
            "pruning/sparsity": self.pruner.totals.sparsity,
            "pruning/target": self.pruner.totals.target_now(self.stats.target),
        }
        return figures | {f"pruning/{key}": value for key, value in self.stats.figures.items()}

    def check(self) -> None:
        """At the end of a run: the hard phase is reached, pruned weights are zero. Raises PromiseBroken. Collective."""
        if self.pruner is None:
            raise PromiseBroken("the pruner was never started")
        self.pruner.check()
        self.pruner.check_finished()
        if self.pruner.layout.world.rank == 0:
            self.pruner.ended()
            self._warn_of_layers(self.pruner)

    def _warn_of_layers(self, pruner: Pruner) -> None:
        structures = [each for each in pruner.pruners if isinstance(each, StructurePruner)]
        if layers := [name for each in structures for name in each.left_to_hooks]:
            warnings.warn(
                f"{', '.join(layers)} are removed in this process only: a model with weights that the trainer saves "
                "computes them; take `pat export CHECKPOINT --out DIR`, which writes the model without them",
                stacklevel=3,
            )


def _nothing() -> None:
    pass


def _said_once(world: Comm, how: Callable[[str], None], text: str) -> None:
    if world.rank == 0:
        how(f"pat: {text}")


def _check_optimizer(base: Any) -> None:
    adamw = type(base) is torch.optim.AdamW
    decoupled = any(getattr(base, name, False) for name in ("adam_w_mode", "adamw_mode"))
    if not adamw and not (type(base).__name__ in ("FusedAdam", "DeepSpeedCPUAdam") and decoupled):
        raise ValueError(
            f"the optimizer is {type(base).__name__}, under which pruned weights would not stay what they are: take "
            "torch's AdamW (optim=adamw_torch), or DeepSpeed's with adam_w_mode"
        )
