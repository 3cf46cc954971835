#!/usr/bin/env bash
# Installs those of the named packages that are missing, and starts nothing. Needs root on Debian or Ubuntu.
set -euo pipefail
exec 9>/tmp/pat-tests-install.lock # two test files may come at once
flock 9
missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
policy=/usr/sbin/policy-rc.d # no package may start a daemon
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
wait=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
apt-get update -qq "${wait[@]}" 9>&-
apt-get install -y -qq --no-install-recommends "${wait[@]}" "${missing[@]}" >&2 9>&-
