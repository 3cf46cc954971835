"""Checks what may go into the registry, and reads a variant's lineage from its folder.

A variant is a Hugging Face folder with safetensors. `pat export` leaves an export.json in it, with lineage; of any
other folder only the hashes of its files are known.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pat.common.text import short
from pat.registry.store import DamagedError, Manifest

EXPORT, MASKS = "export.json", "masks.safetensors"
# What exports, tokenizers and model cards are made of. Other files may run code when they are read.
SUFFIXES = (
    ".safetensors", ".json", ".jsonl", ".yaml", ".yml", ".jinja", ".md", ".txt", ".tsv", ".model", ".tokenizer",
    ".tiktoken", ".codes", ".bpe", ".vocab", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf",
)  # fmt: skip
NUMBER = re.compile(r"\.v\d+")  # of a version, behind the suffix
BARE = ("license", "licence", "notice", "copying", "readme")  # what names without a suffix begin with
# Of pickles (protocol 2 and later), and of archives: zip (as torch.save writes it), gzip, xz, zstd, bz2, 7z, rar.
STARTS = (
    b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd", *(b"BZh%d1AY&SY" % level for level in range(1, 10)), b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07",
)  # fmt: skip
TAR = 257  # where a tar has b"ustar"
# What is read of export.json, outer fields first, and their types; null, or nothing, stands for what is not known.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "files": dict, "lineage": dict, "lineage.metrics": dict, "lineage.versions": dict, "lineage.envelope": dict,
    "lineage.data": list, "config": dict, "config.data": dict, "export_versions": dict, "after": dict,
    "sparsity": (int, float), "weights_sha256": str, "mask_sha256": str,
}  # fmt: skip


def listed(folder: Path) -> list[str]:
    """The paths of a variant's files, hidden ones left out. ValueError for a folder that is not a variant, or could run
    code."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give what `pat export` or `pat prune` has written")
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run: `pat export {folder} --out DIR` makes the folder to add")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give what `pat export` or `pat prune` has written")
    names: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or (path.is_dir() and not path.is_symlink()):
            continue
        _check_file(path, folder)
        names.append(name.as_posix())
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder} has no safetensors: give a Hugging Face model's folder")
    return names


def _check_file(path: Path, folder: Path) -> None:
    """ValueError where a file must not be in the registry."""
    if path.is_symlink() and not _within(path, folder):
        raise ValueError(f"{path} is a link out of its folder: put the file itself there")
    if not path.is_file():
        raise ValueError(f"{path} is not a plain file: remove it")
    suffix = path.suffixes[-2:-1] if NUMBER.fullmatch(path.suffix) else [path.suffix]  # tokenizer.model.v3
    kept = "".join(suffix).lower() in SUFFIXES or (not path.suffix and path.name.lower().startswith(BARE))
    if not kept:
        raise ValueError(
            f"{path} is of no kind that the registry keeps, as it may run code when it is read: remove it, or save "
            "weights as safetensors (docs/registry.md lists what is kept)"
        )
    with open(path, "rb") as file:
        start = file.read(TAR + 5)
        if path.suffix.lower() == ".safetensors":  # 8 bytes of its header's length, any number, and the header: JSON
            bad = start[8:9] != b"{"
        else:
            bad = start.startswith(STARTS) or start[TAR:] == b"ustar"
        if bad:
            raise ValueError(
                f"{path} is a pickle or an archive by its first bytes: only safetensors are kept; remove it"
            )


def _within(path: Path, folder: Path) -> bool:
    """Whether a link stays in the folder; a hub model's cache has its files in `blobs`, beside `snapshots`."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    return any(real.is_relative_to(each) for each in allowed)


def check_whole(folder: Path, manifest: Manifest) -> None:
    """ValueError for torn weights, DamagedError where export.json vouches for other files than these."""
    from pat.models.weight_files import check_weights  # which takes torch along

    check_weights(str(folder), "the variant")
    exported = read_export(folder)
    for name, said in (exported.get("files") or {}).items():
        if name not in manifest:
            raise DamagedError(f"{name}, which {EXPORT} names, is missing: export the run again")
        if manifest[name]["sha256"] != said["sha256"]:
            raise DamagedError(f"{name} is not what was exported: its sha256 is not the one in {EXPORT}; export again")
    if exported.get("mask_sha256") and MASKS in manifest:
        from pat.export.masks import hash_masks

        if hash_masks(folder) != exported["mask_sha256"]:
            raise DamagedError(f"{MASKS} does not hold the masks that {EXPORT} names: export again")


def read_export(folder: Path) -> dict[str, Any]:
    """export.json's content; empty where there is none. ValueError where it is not readable, or of another form."""
    try:
        content = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / EXPORT} is not readable: export the run again") from None
    wrong = _other_form(content)
    if wrong:
        raise ValueError(
            f"{folder / EXPORT} is not what `pat export` writes, as {wrong}: remove it, or export the run again"
        )
    return content


def _other_form(content: Any) -> str:
    """The first thing in an export.json that is of another type than `pat export` writes; empty where there is none."""
    if not isinstance(content, dict):
        return "it holds no mapping"
    for field, kinds in FIELDS.items():
        found: Any = content
        for part in field.split("."):
            found = (found or {}).get(part)
        if found is not None and not isinstance(found, kinds):
            return f"{field} is {short(repr(found))}"
    for name, said in (content.get("files") or {}).items():
        if not isinstance(said, dict) or not isinstance(said.get("sha256"), str):
            return f"files has no sha256 of {short(name)}"
    pairs = (content.get("lineage") or {}).get("data") or []
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int) for pair in pairs):
        return f"lineage.data is {short(repr(pairs))}"
    return ""


def lineage(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Where a variant comes from, as far as its folder knows; None: it does not say."""
    from pat.evaluation.stored import weight_files  # which takes torch along
    from pat.models.weight_files import stored_sha256

    exported = read_export(folder)
    run = exported.get("lineage") or {}
    led = {"envelope": run["envelope"]} if run.get("envelope") else {}  # what it allowed in training
    config = exported.get("config") or {}
    return {
        "base_model": {"path": run.get("base_model"), "sha256": run.get("base_sha256")},
        "data": {"source": (config.get("data") or {}).get("source"), "samples": run.get("data")},
        "teacher": run.get("teacher"),
        "config": {"recipe": run.get("recipe"), "sha256": run.get("config_sha256"), "seed": run.get("seed")},
        "code": {"trained": run.get("versions"), "exported": exported.get("export_versions")},
        "run": {key: run.get(key) for key in ("run", "directory", "checkpoint", "step", "phase", "num_steps")},
        "masks": {"sha256": exported.get("mask_sha256"), "sparsity": exported.get("sparsity")},
        # trained: effective weights of the whole model in fp32, before they are cut and rounded; stored: the tensors
        # here, whatever their files and dtype; files: the files here
        "weights": {
            "trained_sha256": exported.get("weights_sha256"),
            "stored_sha256": stored_sha256(weight_files(folder)),
            "files_sha256": weights_sha256(manifest),
        },
        **led,
    }


def weights_sha256(manifest: Manifest) -> str:
    """The hash of `pat.models.weight_files` for a folder, from known file hashes."""
    files = {name: said["sha256"] for name, said in manifest.items() if "/" not in name}
    lines = [f"{sha256}  {name}\n" for name, sha256 in files.items() if name.endswith(".safetensors")]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def figures(folder: Path) -> dict[str, Any]:
    """The figures of cost and quality in the folder's export.json."""
    from pat.evaluation.stored import weight_files  # which takes torch along

    exported = read_export(folder)
    after = exported.get("after") or {}
    return {
        "metrics": (exported.get("lineage") or {}).get("metrics"),
        "parameters": after.get("parameters"),
        "nonzero_parameters": after.get("nonzero_parameters"),
        "bytes": sum(path.stat().st_size for path in weight_files(folder)),
        "dtype": exported.get("dtype"),
        "structures": exported.get("structures"),
    }


def own_hashes(record: Mapping[str, Any]) -> set[str]:
    """All hashes by which a result may name a version's weights: of what is stored, not of what was trained, before it
    was rounded."""
    weights = record["lineage"]["weights"]
    files = [said["sha256"] for name, said in record["files"].items() if name.endswith(".safetensors")]
    return {sha for sha in (weights["stored_sha256"], weights["files_sha256"], *files) if sha}
