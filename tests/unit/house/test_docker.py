"""The images, without a container engine: what their files say, and their install steps run in a clean tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.install import problem_of

FILES = ("Dockerfile", "Dockerfile.cpu")
USER = 64321  # nobody's number
MINORS = ("3.11", "3.12", "3.13")  # Debian's and Ubuntu's


@dataclass
class Image:
    """What a Dockerfile does, in order."""

    steps: list[tuple[str, str]]
    environment: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Image:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        words = (step.partition(" ") for step in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines())
        image = Image([(name, text) for name, _, text in words])
        for name, text in image.steps:
            if name in ("ENV", "ARG"):
                image.environment |= dict(re.findall(r'(\w+)="?([^\s"]*)"?', text))
        return image

    def all(self, name: str) -> list[str]:
        return [text for step, text in self.steps if step == name]

    def as_user(self) -> list[str]:
        """The RUN steps after USER."""
        after = self.steps[[name for name, _ in self.steps].index("USER") :]
        return [text for name, text in after if name == "RUN"]

    def packages(self) -> list[str]:
        (install,) = (text for text in self.all("RUN") if "apt-get install" in text)
        words = re.search(r"apt-get install (.*?) &&", install)
        assert words
        return [word for word in words[1].split() if not word.startswith("--")]


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_pinned_and_not_roots(repository: Path, name: str) -> None:
    image = Image.read(repository / "docker" / name)
    (base,) = image.all("FROM")
    assert re.fullmatch(r"[\w./-]+:\w*\d[\w.-]*", base), "a tag with a version"
    (user,) = image.all("USER")
    assert user == "pat" and f"useradd --create-home --uid 1001 {user}" in image.all("RUN")[0]
    assert f"install --directory --owner {user} {image.all('WORKDIR')[0]}" in image.all("RUN")[0]
    assert image.all("COPY") == [f"--chown={user} . ."] and image.as_user()[-1].endswith("launch/setup.sh")
    assert image.environment["PAT_VENV"] == f"{image.all('WORKDIR')[0]}/.venv"
    assert image.environment["PATH"] == f"{image.environment['PAT_VENV']}/bin:$PATH"
    assert "rm -rf /var/lib/apt/lists/*" in image.all("RUN")[0], "small"


def test_only_the_sources_are_copied_and_the_versions_are_pinned(repository: Path) -> None:
    assert {".git", ".venv", "assets", "runs"} <= set((repository / ".dockerignore").read_text().split())
    assert '--constraint "$root/docker/constraints.txt"' in (repository / "launch" / "setup.sh").read_text()
    pinned = (repository / "docker" / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in pinned)


def test_what_the_set_up_needs_is_installed(repository: Path) -> None:
    cuda, cpu = (Image.read(repository / "docker" / name).packages() for name in FILES)
    assert {"python3", "python3-dev", "python3-venv", "g++", "git"} <= set(cuda), "Ubuntu's base has no Python"
    assert {"g++", "git"} <= set(cpu)
    assert {"pdsh", "openssh-client"} <= set(cuda), "engine.hostfile"
    if shutil.which("apt-cache") and any(Path("/var/lib/apt/lists").glob("*_main_binary-*_Packages*")):
        command = ["apt-cache", "policy", *{*cuda, *cpu}]
        policy = subprocess.run(command, capture_output=True, text=True).stdout
        candidates = dict(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (.*)$", policy, re.MULTILINE))
        for package in {*cuda, *cpu}:
            assert candidates.get(package, "(none)") != "(none)", f"{package}: no such package"


@pytest.fixture
def clean(repository: Path) -> Iterator[Path]:
    """The committed files as they are now, and an empty home beside them, for a user who is not root."""
    folder = Path(tempfile.mkdtemp(prefix="pat-image-"))  # not pytest's: other users must come in
    try:
        folder.chmod(0o755)
        (folder / "home").mkdir()
        listed = subprocess.run(["git", "-C", repository, "ls-files", "-z"], capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            target = folder / "pat" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target, follow_symlinks=False)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_the_steps_of_the_cpu_image(repository: Path, clean: Path) -> None:
    python = _python()
    (clean / "bin").mkdir()
    for name in ("python", "python3"):
        (clean / "bin" / name).symlink_to(python)
    image = Image.read(repository / "docker" / "Dockerfile.cpu")
    base = f"{clean}/bin:/usr/local/bin:/usr/bin:/bin"
    # Where packages come from is this machine's; without what only tests and the demo need it takes half as long.
    environment = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}
    environment |= {
        "HOME": str(clean / "home"),
        "PATH": base,
        "PAT_EXTRAS": "",
        "PIP_NO_COMPILE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for key, value in image.environment.items():
        value = re.sub(r"/pat(?=/|$)", str(clean / "pat"), value).replace("$PATH", base)
        environment[key] = value
    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "/nowhere")) / "deepspeed_shm_comm"
    if (built / "deepspeed_shm_comm.so").exists():  # compiling takes a minute, and every set-up does it
        shutil.copytree(built, Path(environment["TORCH_EXTENSIONS_DIR"]) / built.name)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{USER}:{USER}", clean], check=True)

    def run(step: str, where: Path = clean / "pat") -> str:
        done = subprocess.run(
            [*_as_user(), "/bin/sh", "-c", step],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{step}:\n{done.stdout}{done.stderr}"
        return done.stdout

    for step in image.as_user():
        run(step)
    assert "usage: pat" in run("pat --help") and run("command -v pat").strip() == f"{clean}/pat/.venv/bin/pat"
    plan = run("pat train recipe=parity --dry-run", clean / "home")
    assert "What would be pruned" in plan and "73,728" in plan
    assert run("python -c 'import pat; print(pat.__file__)'", clean / "home").strip() == f"{clean}/pat/pat/__init__.py"
    assert {path.name for path in (clean / "home").iterdir()} <= {".cache", ".config", "runs", ".triton"}


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []


def _python() -> str:
    """A Python that another user may run; skips where there is none."""
    if found := _found():
        return found
    problem = problem_of("python3", "python3-venv")
    if found := _found():
        return found
    why = f"no Python {', '.join(MINORS)} here that another user could make an environment with"
    pytest.skip(f"{why}, and {problem}" if problem else why)


def _found() -> str | None:
    folders = ("/usr/local/bin", "/usr/bin")
    for path in (sys.executable, *(f"{folder}/python{minor}" for folder in folders for minor in MINORS)):
        real = os.path.realpath(path)
        fits = f"{real} -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'"
        check = [*_as_user(), "/bin/sh", "-c", fits]  # by a shell: setpriv itself may still run what root may
        if os.path.exists(real) and not subprocess.run(check, capture_output=True, env={}, cwd="/").returncode:
            return real
    return None
