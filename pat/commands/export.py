"""A stock Hugging Face folder from a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pat.commands._help import command_parser, exit_codes
from pat.run.directory import ExitCode


def main(arguments: Sequence[str]) -> int:
    """`pat export`."""
    parser = command_parser(
        prog="pat export",
        description="Write a stock Hugging Face folder (safetensors, tokenizer, config, model card, masks) from a\n"
        "run's checkpoint, tensor by tensor, without a GPU and without its ranks; then reload it and prove it equal.",
        epilog="examples:\n  pat export runs/parity --out pruned\n"
        "  pat export runs/parity --out pruned --checkpoint 200 --dtype bf16\n"
        "  pat export runs/parity --out pruned-0.3 --checkpoint sparsity=0.3    what train.export_at=[0.3] kept\n"
        "  pat export OUT/checkpoint-500 --out pruned    of an HF Trainer with pat.integrations.hf\n\n"
        + exit_codes({ExitCode.BROKEN_PROMISE: "the checkpoint, or what was written of it, is not what it must be"}),
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory (run.dir of the training)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write: a new one, or an empty one"
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|last|good|STEP|sparsity=S",
        help="checkpoint to export; best, the default: the one of the hard phase with the best held-out metric "
        "(train.best_metric); good: the last one inside the envelope, if there is one; "
        "sparsity=S: where the run first reached S, if train.export_at has it. In the "
        "soft phase single weights are zero then, but structures are not cut off yet",
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="precision of the weights (default: that of the training)"
    )
    parser.add_argument(
        "--verify",
        choices=("auto", "logits", "layers", "weights"),
        default="auto",
        help="weights: every tensor is compared bit for bit, as always; logits: the reloaded model's logits, too; "
        "layers: every layer and the logits, one module in memory at a time; auto: logits, or layers from 4 GiB on",
    )
    options = parser.parse_args(arguments)
    from rich.console import Console

    from pat.export.export import export_run
    from pat.export.report import format_report

    console = Console(stderr=True)
    result = export_run(options.run, options.out, options.checkpoint, options.dtype, options.verify, console)
    Console().print(format_report(result))
    reader = result["loader"]
    print(f'written to {options.out}; in Python: {reader}("{options.out}")')
    return ExitCode.DONE
