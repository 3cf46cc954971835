"""The faults of the mutation run: one place each, of the kind that a tired author makes and that a reader overlooks.

(old text, new text, what breaks), by file; the old text is there exactly once. None is known to change nothing: where
a fault that nothing sees is harmless after all, ACCEPTED says why.
"""

from __future__ import annotations

from dataclasses import dataclass

U, D = "tests/unit/", "tests/distributed/"
ORACLE = f"{U}test_gate_oracle.py"
RIGHT = f"{U}test_gates_keep_the_right_units.py"
EXPORT = [f"{U}test_export.py", f"{U}test_structures.py", f"{U}test_export_at.py", f"{U}test_peft.py"]
READER = [f"{U}test_checkpoint_reader.py", f"{U}test_export.py"]
MASKS = [f"{U}test_mask_oracle.py", f"{U}test_kernels.py", f"{U}test_criteria.py"]
BUDGETS = [f"{U}test_structure_budgets.py", f"{U}test_structure_costs.py", f"{U}test_structure_refusals.py"]

TESTS: dict[str, list[str]] = {  # by file or folder, the longest first: quick ones that should see its faults, in order
    "pat/pruning/gates/": [RIGHT, f"{U}test_gates.py", f"{U}test_structure_refusals.py", ORACLE],
    "pat/pruning/gate_training.py": [RIGHT, f"{U}test_learned_gates.py", ORACLE],
    "pat/pruning/lagrangian.py": [RIGHT, f"{U}test_learned_gates.py", ORACLE],
    "pat/pruning/structured.py": [
        RIGHT,
        f"{U}test_fold.py",
        f"{U}test_ties.py",
        ORACLE,
        f"{U}test_structure_refusals.py",
        f"{U}test_structures.py",
    ],
    "pat/pruning/hooks.py": [f"{U}test_gates.py", f"{U}test_evidence.py", f"{U}test_overflow.py", ORACLE],
    "pat/pruning/unit_slices.py": [f"{U}test_gates.py", RIGHT, ORACLE],
    "pat/pruning/example_gradients.py": [ORACLE, f"{U}test_evidence.py"],
    "pat/pruning/gate_history.py": [f"{U}test_fold.py"],
    "pat/pruning/folding.py": [f"{U}test_fold.py", RIGHT, ORACLE],
    "pat/pruning/rounding.py": [f"{U}test_rounding.py", f"{U}test_schedules.py"],
    "pat/pruning/sites.py": [f"{U}test_gates.py", f"{U}test_structures.py"],
    "pat/pruning/structures/": [f"{U}test_gates.py", f"{U}test_structures.py", f"{U}test_structure_refusals.py"],
    "pat/pruning/costs.py": [f"{U}test_structure_costs.py", *BUDGETS, f"{U}test_structures.py", ORACLE],
    "pat/pruning/inventory.py": [*BUDGETS, f"{U}test_structures.py", ORACLE],
    "pat/pruning/budgets/": [
        *BUDGETS,
        f"{U}test_learned_gates.py",
        f"{U}test_selection.py",
        f"{U}test_granularity.py",
        ORACLE,
    ],
    "pat/pruning/choose.py": [*BUDGETS, ORACLE],
    "pat/pruning/grid.py": BUDGETS,
    "pat/pruning/criteria/": [f"{U}test_criteria.py", f"{U}test_prior.py", *MASKS],
    "pat/pruning/prior.py": [f"{U}test_prior.py"],
    "pat/pruning/kernels.py": [f"{U}test_kernels.py", *MASKS],
    "pat/pruning/masks.py": MASKS,
    "pat/pruning/masked_shard.py": MASKS,
    "pat/pruning/pruner.py": [*MASKS, RIGHT, ORACLE, f"{U}test_engine.py", f"{U}test_structure_refusals.py"],
    "pat/pruning/shards.py": [*MASKS, f"{U}test_engine.py", ORACLE],
    "pat/pruning/schedules/": [f"{U}test_schedules.py"],
    "pat/pruning/granularity/": [f"{U}test_granularity.py", f"{U}test_structure_refusals.py"],
    "pat/pruning/selection.py": [f"{U}test_selection.py", f"{U}test_granularity.py"],
    "pat/pruning/brackets.py": [f"{U}test_selection.py"],
    "pat/pruning/spans.py": [f"{U}test_granularity.py", f"{U}test_selection.py"],
    "pat/pruning/nested.py": [f"{U}test_structure_refusals.py"],
    "pat/pruning/totals.py": [*MASKS, f"{U}test_structure_refusals.py"],
    "pat/pruning/": MASKS,
    "pat/checkpoint.py": [f"{U}test_checkpoint.py"],
    "pat/retention.py": [f"{U}test_checkpoint.py", f"{U}test_export_at.py"],
    "pat/manifest.py": [f"{U}test_checkpoint.py", f"{U}test_structure_refusals.py"],
    "pat/checkpoint_reader.py": READER,
    "pat/deepspeed_files.py": READER,
    "pat/hashing.py": [f"{U}test_hashing.py", f"{U}test_export.py"],
    "pat/export/": EXPORT,
    "pat/engine.py": [f"{U}test_engine.py", ORACLE],
    "pat/distill.py": [f"{U}test_distill.py", ORACLE],
    "pat/chunked.py": [f"{U}test_chunked.py", f"{U}test_distill.py"],
    "pat/integrations/": [f"{U}test_integrations.py", ORACLE],
}
RANKS: dict[str, list[str]] = {  # for what the quick ones let through
    "pat/pruning/gate": [f"{D}test_gates.py"],
    "pat/pruning/lagrangian.py": [f"{D}test_gates.py"],
    "pat/pruning/structured.py": [f"{D}test_gates.py"],
    "pat/pruning/hooks.py": [f"{D}test_gates.py"],
    "pat/pruning/unit_slices.py": [f"{D}test_gates.py"],
    "pat/pruning/folding.py": [f"{D}test_gates.py"],
    "pat/pruning/": [f"{D}test_core.py", f"{D}test_gates.py"],
    "pat/checkpoint": [f"{D}test_core.py", f"{D}test_checkpoint_reader.py", f"{D}test_gates.py"],
    "pat/deepspeed_files.py": [f"{D}test_checkpoint_reader.py"],
    "pat/manifest.py": [f"{D}test_core.py"],
    "pat/distill.py": [f"{D}test_distill.py", f"{D}test_gates.py"],
    "pat/chunked.py": [f"{D}test_chunked.py"],
    "pat/integrations/": [f"{D}test_hf.py", f"{D}test_gates.py"],
    "pat/": [f"{D}test_core.py"],
}
ACCEPTED: dict[str, str] = {  # "FILE: what" -> why nobody needs to see it
    "pat/pruning/choose.py: a model that fits is narrowed": "what was narrowed too far grows back in the end",
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

    return [Fault(file, *each) for file, found in (PRUNING | REST).items() for each in found]
