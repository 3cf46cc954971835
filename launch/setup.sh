#!/usr/bin/env bash
# Makes the Python environment and installs pat into it. Runs again in under a second when nothing changed.
#
#   launch/setup.sh            run it:    make .venv, install pat and its dependencies, build DeepSpeed's CPU op
#   . launch/setup.sh          source it: the same, and this shell then uses the environment
#
# PAT_VENV      where the environment lives (default: .venv in the repository)
# PAT_PYTHON    which Python makes it (default: python3; 3.11 or newer)
# PAT_EXTRAS    optional dependencies (default: dev,demo)
# PAT_SETUP     active: take the Python environment that is active as it is, and install nothing

pat_setup() {
    local root venv python extras stamp
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    venv="${PAT_VENV:-$root/.venv}"
    python="${PAT_PYTHON:-python3}"
    extras="${PAT_EXTRAS-dev,demo}"

    stamp="$(cat "$root/pyproject.toml" "$root/docker/constraints.txt" <(echo "$root $extras") | sha256sum)"
    if [ "${PAT_SETUP:-}" = active ]; then
        python -c 'import pat' 2>/dev/null ||
            { echo "setup: PAT_SETUP=active, but no active Python has pat: activate its environment first." >&2; return 2; }
        venv="$(python -c 'import sys; print(sys.prefix)')"
    elif [ "$stamp" != "$(cat "$venv/pat-setup.stamp" 2>/dev/null)" ]; then
        command -v "$python" >/dev/null ||
            { echo "setup: '$python' was not found. Install Python 3.11 or newer, or set PAT_PYTHON to it." >&2; return 2; }
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            { echo "setup: $("$python" -V) is too old: pat needs Python 3.11 or newer. Set PAT_PYTHON to one." >&2; return 2; }
        "$python" -c 'import ensurepip' 2>/dev/null ||
            { echo "setup: '$python' cannot make environments. Install its venv package (Debian: apt install python3-venv)." >&2; return 2; }
        command -v g++ >/dev/null ||
            { echo "setup: g++ was not found; DeepSpeed compiles an op with it. Install it (Debian: apt install g++)." >&2; return 2; }
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" ||
            { echo "setup: could not make an environment in $venv (PAT_VENV sets another place)." >&2; return 2; }
        echo "setup: installing pat and its dependencies into $venv (a few minutes the first time)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            --constraint "$root/docker/constraints.txt" --editable "$root${extras:+[$extras]}" ||
            { echo "setup: pip could not install pat into $venv; its message is above. Is there a network?" >&2; return 2; }
        echo "$stamp" >"$venv/pat-setup.stamp"
        echo "setup: installed"
    fi

    case ":$PATH:" in *":$venv/bin:"*) ;; *) export PATH="$venv/bin:$PATH" ;; esac

    # DeepSpeed compiles its CPU communication op (about a minute) when ranks first meet. Built here, in the background,
    # so that data can be prepared meanwhile; call pat_wait before starting ranks. Our own lock keeps two set-ups apart;
    # pat's ends with a killed build, for whose `lock` file all would wait. `pat train` looks in the same place,
    # made of the environment and the versions in it.
    PAT_OPS="${TORCH_EXTENSIONS_DIR:-$(DS_ACCELERATOR=cpu "$venv/bin/python" -c '
import os; from pat.common.extensions import extensions_dir; print(extensions_dir(os.environ))')}"
    if [ ! -e "$PAT_OPS/deepspeed_shm_comm/deepspeed_shm_comm.so" ]; then
        mkdir -p "$PAT_OPS"
        echo "setup: building DeepSpeed's CPU communication op in the background (log: $PAT_OPS/build.log)"
        (
            flock 9
            # A log first: a failed build is no failed set-up, DeepSpeed tries again and then says why.
            DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR="$PAT_OPS" "$venv/bin/python" -c '
from pat.zero.op_lock import load_ops_under_held_lock
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
load_ops_under_held_lock(); ShareMemCommBuilder().load()' >"$PAT_OPS/build.log" 2>&1
        ) 9>"$PAT_OPS/build.lock" </dev/null &
        PAT_OP_BUILD=$!
    fi
}

# Waits for the op, if this shell is building it.
pat_wait() {
    if [ -n "${PAT_OP_BUILD:-}" ]; then
        wait "$PAT_OP_BUILD" || echo "setup: the op could not be built; DeepSpeed will try again. See its log." >&2
        PAT_OP_BUILD=""
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case "${1:-}" in -h | --help) sed '1d; /^[^#]/,$d; s/^# \{0,1\}//' "$0" && exit ;; esac
fi
pat_setup || { [ "${BASH_SOURCE[0]}" = "$0" ] && exit 2 || return 2; }
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    pat_wait
    echo "setup: ready. Activate it with: source ${PAT_VENV:-.venv}/bin/activate"
fi
