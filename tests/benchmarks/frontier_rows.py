"""What the frontier consists of: models with their data, targets, methods, and the rows of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


def _gradual(pruner: str) -> list[str]:
    """The schedule of what needs no calibration, when it trains; weights are ranked within their matrix."""
    schedule = ("name=cubic", "start=0.1", "end=0.6", "select_every=5")
    scope = ["pruners.weights.scope=matrix"] if pruner == "weights" else []
    return [*scope, *(f"pruners.{pruner}.schedule.{key}" for key in schedule)]


def _once(gate: str) -> tuple[str, ...]:
    """A gate that needs some steps to see, and then cuts."""
    return f"pruners.narrow.gate.name={gate}", "pruners.narrow.schedule.start=0.05"


@dataclass(frozen=True)
class Subject:
    """A model, data and how the model is judged."""

    kind: str  # decoder | encoder: of the recipes
    model: str  # in assets/
    data: str
    task: str
    metric: str
    judge: tuple[str, ...]  # of `pat evaluate`
    max_length: int
    samples: int  # to calibrate on
    keys: tuple[str, ...] = ()  # of pat train
    batch: int = 16  # samples of a step, as recipe=encoder has it

    @property
    def files(self) -> tuple[str, str]:
        """(training, held out)."""
        return f"assets/{self.data}/train.jsonl", f"assets/{self.data}/eval.jsonl"

    @property
    def unpruned(self) -> list[str]:
        """The recipe's run without its pruner, as keys of `pat train`."""
        return ["pruners={}", *(["optim.lr_schedule=linear"] if self.kind == "encoder" else [])]

    @property
    def dense(self) -> list[str]:
        """The same at the rate that is best for the whole model."""
        return [*self.unpruned, *(["optim.lr=1.5e-4"] if self.kind == "encoder" else [])]

    def described(self, steps: int) -> list[str]:
        """Model, data and steps, as keys of `pat train`."""
        train, held_out = self.files
        given = [f"task={self.task}", "data=json", f"data.train={train}", f"data.eval={held_out}"]
        return [*given, f"data.max_length={self.max_length}", f"train.num_steps={steps}", *self.keys]


BATCH = 4  # samples of a decoder's step


def _llama(data: str, task: str, recipe: str, eval_samples: int) -> Subject:
    keys = (f"train.global_batch_size={BATCH}", f"data.max_eval_samples={eval_samples}")
    return Subject("decoder", "smollm2", data, task, "perplexity", (f"recipe={recipe}",), 256, 128, keys, BATCH)


def _encoder(data: str) -> Subject:
    """Sentences that `other_data.py` writes; judged as the recipe reads them."""
    return _judged(Subject("encoder", "minilm", data, "classification", "accuracy", (), 128, samples=2048))


def _text(data: str, task: str = "causal_lm") -> Subject:
    """Texts that `other_texts.py` writes, or chats of `other_chats.py`; judged as the recipe reads them."""
    return _judged(_llama(data, task, "decoder", eval_samples=64 if task == "causal_lm" else 320))


def _judged(subject: Subject) -> Subject:
    """The same, judged by its own recipe."""
    model = f"model.path=assets/{subject.model}"
    return replace(subject, judge=(f"recipe={subject.kind}", model, "pruners={}", *subject.described(1)))


SUBJECTS = {
    "addresses": _llama("sotu", "causal_lm", "sotu_dense", eval_samples=32),
    "chats": _llama("chats", "chat", "smollm2_chat", eval_samples=160),
    "reviews": Subject(
        "encoder", "minilm", "reviews", "classification", "accuracy", ("recipe=reviews_dense",), 128, samples=2048
    ),
    **{name: _encoder(name) for name in ("questions", "subjectivity", "customers", "opinions", "banking")},
    **{name: _text(name) for name in ("plays", "library")},
    "sums": _text("sums", "chat"),
}
PICTURED = ("addresses", "chats", "reviews")  # with more than one target or budget


@dataclass(frozen=True)
class Target:
    """What is left out: 70 (per cent of the layers' weights), 2:4, ffn=0.5 (the share that stays), layers=20 (how many
    stay), dense (nothing)."""

    text: str

    @property
    def kind(self) -> str:
        """dense | weights | pattern | structures | layers."""
        return "dense" if self.text == "dense" else "pattern" if ":" in self.text else self._sized()

    def _sized(self) -> str:
        if self.text.startswith("layers="):
            return "layers"
        return "structures" if "=" in self.text else "weights"

    @property
    def narrow(self) -> bool:
        """Whether the model becomes smaller."""
        return self.kind in ("structures", "layers")

    def flags(self) -> list[str]:
        """Of `pat prune`, and of a peer's script."""
        kinds = {"pattern": "--pattern", "structures": "--keep", "layers": "--keep", "weights": "--sparsity"}
        return [kinds[self.kind], f"{float(self.text) / 100!r}" if self.kind == "weights" else self.text]

    def keys(self) -> list[str]:
        """Of `pat train`."""
        if self.narrow:
            name, _, share = self.text.partition("=")
            return [f"pruners.narrow.structures=[{name}]", f"pruners.narrow.budget.keep={{{name}:{share}}}"]
        if self.kind == "weights":
            return [f"pruners.weights.budget.sparsity={float(self.text) / 100!r}"]
        n, m = map(int, self.text.split(":"))
        pattern = [f"pruners.weights.granularity.{key}" for key in ("name=n_of_m", f"n={n}", f"m={m}")]
        return [*pattern, f"pruners.weights.budget.sparsity={1 - n / m!r}"]


@dataclass(frozen=True)
class Method:
    """A way to prune: ours, or a peer's script."""

    kinds: tuple[str, ...]  # of targets
    at_once: bool = True  # whether it has rows without
    calibrates: bool = True  # whether pat prune takes --samples
    keys: tuple[str, ...] = ()  # of pat train
    peer: str | None = None
    option: str = ""  # --method of `pat prune` or of a peer's script; "": the name
    reconstruct: int = 0  # passes over the calibration samples after each layer's cut; 0: as the recipe has it
    prune_keys: tuple[str, ...] = ()  # of pat prune
    taught: float = (
        0.0  # share of the steps that train the whole model first: the rest starts from it and learns from it
    )
    loops: bool = False  # a peer's script trains by itself, and is given --steps and their samples
    subjects: tuple[str, ...] = ("decoder", "encoder")

    def keys_of(self, target: Target) -> list[str]:
        """Of `pat train`; N:M takes the best of each group, so it has no scope."""
        scoped = [key for key in self.keys if target.kind != "pattern" or ".scope=" not in key]
        place = "narrow.gate" if target.narrow else "weights.criterion"
        passes = [f"pruners.{place}.reconstruct={self.reconstruct}"] if self.reconstruct else []
        return [*scoped, *passes, *target.keys()]


def _weights(criterion: str) -> Method:
    """A criterion that learns while it trains."""
    return Method(WEIGHTS, at_once=False, keys=(f"pruners.weights.criterion.name={criterion}", *_gradual("weights")))


def _structures(gate: str) -> Method:
    """A gate that learns while it trains."""
    return Method(("structures",), at_once=False, keys=(f"pruners.narrow.gate.name={gate}", *_gradual("narrow")))


WEIGHTS = ("weights", "pattern")
ALIKE = (  # each matrix meets the target by itself, and all of its outputs count alike
    "pruners.weights.scope=matrix",
    "pruners.weights.criterion.gradient_samples=0",
)
ALL = ("optim.trainable=[*]",)  # embeddings, too
METHODS = {
    "dense": Method(("dense",)),
    "alps": Method(WEIGHTS),
    "alps-matrix": Method(("weights",), option="alps", keys=ALIKE, prune_keys=ALIKE),
    "alps-reconstructed": Method(
        WEIGHTS, option="alps", reconstruct=4, prune_keys=("pruners.weights.criterion.reconstruct_lr=1e-4", *ALIKE)
    ),
    "alps-taught": Method(WEIGHTS, at_once=False, taught=0.24, subjects=("decoder",)),
    "alps-matrix-taught": Method(("weights",), at_once=False, keys=ALIKE, taught=0.24, subjects=("decoder",)),
    "alps-all": Method(("weights",), at_once=False, keys=ALL, subjects=("decoder",)),
    "alps-64": Method(
        ("weights",), at_once=False, keys=("pruners.weights.criterion.num_samples=64",), subjects=("decoder",)
    ),  # half as many samples to calibrate on
    "alps-16": Method(
        ("weights",), at_once=False, keys=("pruners.weights.criterion.gradient_labels=0",), subjects=("decoder",)
    ),  # gradients of 16 samples, however few labels these have
    "obs-lora": Method(
        ("structures",), at_once=False, keys=("peft=lora", "optim.lr=4e-4"), subjects=("decoder",)
    ),  # adapters of rank 16
    "obs-all": Method(("structures",), at_once=False, keys=ALL, subjects=("decoder",)),
    "obs-per-cut": Method(("structures",), at_once=False, keys=("optim.lr_schedule=per_cut",), subjects=("encoder",)),
    "wanda": Method(WEIGHTS, keys=("pruners.weights.criterion.name=wanda", "pruners.weights.scope=row")),
    "magnitude": Method(
        WEIGHTS, calibrates=False, keys=("pruners.weights.criterion.name=magnitude", *_gradual("weights"))
    ),
    "movement": _weights("movement"),
    "soft-movement": _weights("soft_movement"),
    "taylor-weights": _weights("taylor"),
    "obs": Method(("structures",)),
    "obs-reconstructed": Method(("structures",), option="obs", reconstruct=4),
    "taylor": _structures("taylor"),
    "l0": _structures("l0"),
    "smooth": _structures("smooth"),
    "fisher": _structures("fisher"),
    "activation": _structures("activation"),
    "movement-gate": _structures("movement"),
    "magnitude-gate": _structures("magnitude"),
    "similarity": Method(("layers",), at_once=False, keys=_once("similarity")),
    "pair-similarity": Method(("layers",), at_once=False, keys=_once("pair_similarity")),
    "llmcompressor-sparsegpt": Method(WEIGHTS, peer="llmcompressor", option="sparsegpt"),
    "llmcompressor-wanda": Method(WEIGHTS, peer="llmcompressor", option="wanda"),
    "modelopt-sparsegpt": Method(("pattern",), peer="modelopt", option="sparsegpt"),
    "smaller": Method(("structures", "layers"), at_once=False, peer="smaller", option="plain"),
    "torch-pruning-magnitude": Method(("structures",), peer="torch-pruning", option="magnitude"),
    "torch-pruning-taylor": Method(("structures",), peer="torch-pruning", option="taylor"),
    "torchao-pat": Method(("weights",), at_once=False, peer="torchao", option="pat", loops=True),
}


@dataclass(frozen=True)
class Row:
    """One measurement."""

    data: str
    steps: int
    target: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of the row in the results file, and of its folder."""
        return f"{self.data}-{self.steps}-{self.target}-{self.method}-{self.seed}"


def rows(
    data: Sequence[str], steps: Sequence[int], targets: Sequence[str], methods: Sequence[str], seeds: int
) -> list[Row]:
    """All rows that these flags select: the dense model of each, then one a method; seeds count where it trains."""
    found = []
    for subject in data:
        for number in steps:
            for target in ("dense", *targets):
                for method in methods:
                    known = METHODS[method]
                    fits = Target(target).kind in known.kinds and SUBJECTS[subject].kind in known.subjects
                    if fits and (number or known.at_once):
                        found += [Row(subject, number, target, method, s) for s in range(seeds if number else 1)]
    return found
