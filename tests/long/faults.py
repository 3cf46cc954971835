"""The faults of the mutation run: one place each, of the kind that a tired author makes and that a reader overlooks.

(old text, new text, what breaks), by file; the old text is there exactly once. None is known to change nothing: where
a fault that nothing sees is harmless after all, ACCEPTED says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
D = "tests/distributed/"


def unit(name: str) -> str:
    """The path of a file of unit tests, in whichever folder it is."""
    (path,) = (ROOT / "tests" / "unit").rglob(name)
    return path.relative_to(ROOT).as_posix()


ORACLE = unit("test_gate_oracle.py")
RIGHT = unit("test_gates_keep_the_right_units.py")
RESUME = unit("test_resume_bit_for_bit.py")
WRITTEN = unit("test_what_an_export_writes.py")
EXPORT = [unit("test_export.py"), unit("test_structures.py"), unit("test_export_at.py"), unit("test_peft.py"), WRITTEN]
READER = [unit("test_checkpoint_reader.py"), unit("test_export.py")]
MASKS = [unit("test_mask_oracle.py"), unit("test_kernels.py"), unit("test_criteria.py"), unit("test_resume.py")]
WIRED = [unit("test_pruner.py"), unit("test_overflow.py"), unit("test_resume.py")]
CALIBRATED = [
    unit("test_back.py"),
    unit("test_calibrated_criteria.py"),
    unit("test_calibrated_gates.py"),
    unit("test_cuts.py"),
    unit("test_experts.py"),
    unit("test_walk.py"),
    unit("test_reconstruction.py"),
]
BUDGETS = [unit("test_structure_budgets.py"), unit("test_structure_costs.py"), unit("test_structure_refusals.py")]

TESTS: dict[str, list[str]] = {  # by file or folder, the longest first: quick ones that should see its faults, in order
    "pat/pruning/gates/": [RIGHT, unit("test_gates.py"), unit("test_structure_refusals.py"), ORACLE],
    "pat/pruning/structures/gate_training.py": [RIGHT, unit("test_learned_gates.py"), ORACLE],
    "pat/pruning/structures/gate_state.py": [unit("test_resume.py"), ORACLE],
    "pat/pruning/structures/lagrangian.py": [RIGHT, unit("test_learned_gates.py"), unit("test_resume.py"), ORACLE],
    "pat/pruning/structures/pruner.py": [
        RIGHT,
        unit("test_fold.py"),
        unit("test_ties.py"),
        *WIRED,
        ORACLE,
        unit("test_structure_refusals.py"),
        unit("test_structures.py"),
    ],
    "pat/pruning/structures/hooks.py": [
        unit("test_gates.py"),
        unit("test_evidence.py"),
        unit("test_overflow.py"),
        ORACLE,
    ],
    "pat/pruning/structures/parts.py": [unit("test_gates.py"), RIGHT, ORACLE],
    "pat/pruning/structures/example_gradients.py": [ORACLE, unit("test_evidence.py")],
    "pat/pruning/structures/gate_history.py": [unit("test_fold.py"), unit("test_resume.py")],
    "pat/pruning/calibration/": CALIBRATED,
    "pat/pruning/calibration/journal.py": [unit("test_journal.py")],
    "pat/pruning/criteria/alps.py": CALIBRATED,
    "pat/common/factors.py": CALIBRATED,
    "pat/pruning/criteria/wanda.py": CALIBRATED,
    "pat/pruning/gates/obs.py": CALIBRATED,
    "pat/pruning/structures/calibrated.py": CALIBRATED,
    "pat/pruning/calibration/fitted.py": CALIBRATED,
    "pat/pruning/weights/calibrated.py": [*CALIBRATED, unit("test_memory.py")],
    "pat/pruning/weights/allocation.py": [unit("test_allocation.py"), *CALIBRATED],
    "pat/pruning/weights/whole.py": [*CALIBRATED, unit("test_selection.py")],
    "pat/pruning/structures/folding.py": [unit("test_fold.py"), RIGHT, unit("test_pruner.py"), ORACLE],
    "pat/common/rounding.py": [unit("test_rounding.py"), unit("test_schedules.py")],
    "pat/pruning/structures/sites.py": [
        unit("test_gates.py"),
        unit("test_structure_refusals.py"),
        unit("test_structures.py"),
    ],
    "pat/pruning/structures/": [unit("test_gates.py"), unit("test_structures.py"), unit("test_structure_refusals.py")],
    "pat/pruning/structures/costs.py": [unit("test_structure_costs.py"), *BUDGETS, unit("test_structures.py"), ORACLE],
    "pat/pruning/structures/units.py": [*BUDGETS, unit("test_structures.py"), ORACLE],
    "pat/pruning/budgets/": [
        *BUDGETS,
        unit("test_learned_gates.py"),
        unit("test_selection.py"),
        unit("test_granularity.py"),
        ORACLE,
    ],
    "pat/pruning/structures/choose.py": [*BUDGETS, ORACLE],
    "pat/pruning/structures/grid.py": BUDGETS,
    "pat/pruning/criteria/": [unit("test_criteria.py"), unit("test_prior.py"), *MASKS],
    "pat/pruning/weights/prior.py": [unit("test_prior.py"), unit("test_calibrated_prior.py"), unit("test_experts.py")],
    "pat/models/experts.py": [unit("test_experts.py"), unit("test_matrices.py")],
    "pat/models/adapters.py": [unit("test_peft.py")],
    "pat/pruning/weights/kernels.py": [unit("test_kernels.py"), *MASKS],
    "pat/pruning/weights/pruner.py": [*MASKS, unit("test_pruner.py")],
    "pat/pruning/weights/shard_state.py": [*MASKS, unit("test_pruner.py")],
    "pat/pruning/pruner.py": [
        *MASKS,
        *WIRED,
        RIGHT,
        ORACLE,
        unit("test_engine.py"),
        unit("test_structure_refusals.py"),
        unit("test_attached_run.py"),
    ],
    "pat/pruning/seam.py": [*MASKS, *WIRED, ORACLE, unit("test_cuts.py")],
    "pat/pruning/compatibility.py": [unit("test_structure_refusals.py"), unit("test_patterns.py"), *WIRED],
    "pat/zero/layouts/": [*MASKS, unit("test_overflow.py"), unit("test_engine.py"), RESUME, ORACLE],
    "pat/pruning/schedules/": [unit("test_schedules.py"), unit("test_clock.py")],
    "pat/pruning/clock.py": [unit("test_clock.py")],
    "pat/envelope/guard.py": [unit("test_guard.py")],
    "pat/envelope/limits.py": [unit("test_guard.py")],
    "pat/training/guarded.py": [unit("test_guard.py")],
    "pat/pruning/granularity/": [unit("test_granularity.py"), unit("test_structure_refusals.py")],
    "pat/pruning/weights/selection.py": [unit("test_selection.py"), unit("test_granularity.py")],
    "pat/pruning/weights/brackets.py": [unit("test_selection.py")],
    "pat/pruning/weights/spans.py": [unit("test_granularity.py"), unit("test_selection.py")],
    "pat/pruning/nested.py": [unit("test_structure_refusals.py")],
    "pat/pruning/structures/ties.py": [unit("test_ties.py")],
    "pat/pruning/totals.py": [unit("test_pruner.py"), *MASKS],
    "pat/pruning/": MASKS,
    "pat/checkpoint/store.py": [unit("test_checkpoint.py"), RESUME],
    "pat/checkpoint/retention.py": [unit("test_checkpoint.py"), unit("test_export_at.py")],
    "pat/checkpoint/manifest.py": [unit("test_checkpoint.py"), unit("test_structure_refusals.py"), RESUME],
    "pat/checkpoint/reader.py": READER,
    "pat/zero/checkpoint_files.py": READER,
    "pat/common/hashing.py": [unit("test_hashing.py"), unit("test_export.py")],
    "pat/export/": EXPORT,
    "pat/export/layout.py": [unit("test_stock_names.py"), *EXPORT],
    "pat/zero/engine.py": [unit("test_engine.py"), ORACLE],
    "pat/training/learning_rate.py": [unit("test_engine.py")],
    "pat/learning_rates/": [unit("test_engine.py")],
    "pat/training/distill.py": [unit("test_distill.py"), ORACLE, unit("test_chunked.py")],
    "pat/training/sampled_kl.py": [unit("test_logit_cache.py")],
    "pat/training/logit_cache": [unit("test_logit_cache.py")],
    "pat/tasks/chunked_loss.py": [unit("test_chunked.py"), unit("test_distill.py")],
    "pat/integrations/": [unit("test_integrations.py"), unit("test_attached_run.py"), ORACLE],
}
RANKS: dict[str, list[str]] = {  # for what the quick ones let through
    "pat/pruning/gates/": [f"{D}test_gates.py"],
    "pat/pruning/structures/": [f"{D}test_gates.py"],
    "pat/pruning/": [f"{D}test_core.py", f"{D}test_gates.py"],
    "pat/checkpoint": [f"{D}test_core.py", f"{D}test_checkpoint_reader.py", f"{D}test_gates.py"],
    "pat/zero/checkpoint_files.py": [f"{D}test_checkpoint_reader.py"],
    "pat/checkpoint/manifest.py": [f"{D}test_core.py"],
    "pat/training/distill.py": [f"{D}test_distill.py", f"{D}test_gates.py"],
    "pat/training/sampled_kl.py": [f"{D}test_distill.py"],
    "pat/training/logit_cache": [f"{D}test_distill.py"],
    "pat/tasks/chunked_loss.py": [f"{D}test_chunked.py"],
    "pat/integrations/": [f"{D}test_hf.py", f"{D}test_gates.py"],
    "pat/": [f"{D}test_core.py"],
}
ACCEPTED: dict[str, str] = {  # "FILE: what" -> why nobody needs to see it
    "pat/pruning/structures/choose.py: a model that fits is narrowed": (
        "what was narrowed too far grows back in the end"
    ),
    "pat/integrations/attach.py: begin left out after a load": (
        "each step begins the next one before anything can be saved, so that what was loaded has begun"
    ),
}


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    file: str
    old: str
    new: str
    what: str

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.file}: {self.what}"

    @property
    def tests(self) -> list[str]:
        """Quick ones, each once."""
        return list(dict.fromkeys(_longest(TESTS, self.file)))

    @property
    def ranks(self) -> list[str]:
        """Slow ones."""
        return _longest(RANKS, self.file)


def _longest(table: dict[str, list[str]], file: str) -> list[str]:
    return table[max((key for key in table if file.startswith(key)), key=len)]


def faults() -> list[Fault]:
    """All of them."""
    from tests.long.faults_of_pruning import PRUNING
    from tests.long.faults_of_the_rest import REST

    return [Fault(file, *each) for file, planted in (PRUNING | REST).items() for each in planted]
