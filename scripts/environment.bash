# Sourced by the scripts beside it; not run by itself.
# ready_python EXTRAS sets $python to an interpreter that has yakvrt (and its EXTRAS, for instance "[dev]"):
# the active virtual environment's, or that of .venv in the repository, made here when it is missing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    say "yakvrt needs Python 3.11 or newer; python3 here is $(python3 --version 2>&1 || true): install python3.11 or newer and run this again."
    return 1
}

# Prints the prefix of the virtual environment that is active, or nothing.
active_prefix() {
    if [[ -n "${VIRTUAL_ENV:-}" && -x "$VIRTUAL_ENV/bin/python" ]]; then
        printf '%s\n' "$VIRTUAL_ENV"
    else
        "$1" -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "", end="")'
    fi
}

make_venv() {
    local base=$1 prefix=$2
    say "making a virtual environment in $prefix"
    if "$base" -c 'import venv, ensurepip' 2>/dev/null; then
        "$base" -m venv --clear "$prefix"
    elif "$base" -c 'import venv, pip' 2>/dev/null; then
        # Debian's python3 without python3-venv: venv works, only the bundled pip is missing.
        "$base" -m venv --clear --without-pip "$prefix"
        "$base" -m pip --python "$prefix/bin/python" install -qq --disable-pip-version-check pip
    else
        say "$base has neither ensurepip nor pip: install them (Debian and Ubuntu: apt install python3-venv), or activate a virtual environment, and run this again."
        return 1
    fi
}

ready_python() {
    local extras=$1 base prefix stamp wanted
    base=$(find_python)
    prefix=$(active_prefix "$base")
    if [[ -z "$prefix" ]]; then
        prefix=$root/.venv
        new_enough "$prefix/bin/python" || make_venv "$base" "$prefix"
    fi
    python=$prefix/bin/python
    if ! new_enough "$python"; then
        say "the active virtual environment $prefix has a Python older than 3.11: deactivate it and run this again."
        return 1
    fi
    # One stamp per set of extras, so that the second run starts at once.
    stamp=$prefix/yakvrt-installed${extras//[^a-z,]/-}
    wanted="$root $(cksum <"$root/pyproject.toml")"
    if [[ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]]; then
        say "installing yakvrt$extras into $prefix (once)"
        "$python" -m pip install -qq --disable-pip-version-check --editable "$root$extras"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
