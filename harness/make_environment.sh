#!/usr/bin/env bash
# make_environment.sh PYTHON FOLDER: a virtual environment with pip, without root.
# Debian splits ensurepip off from Python; its wheels can be unpacked from the package without root.
set -eu
python=$1
folder=$2
if "$python" -c 'import ensurepip' 2>/dev/null; then
  "$python" -m venv "$folder"
else
  echo "== this Python has no ensurepip; unpacking pip from Debian's own package"
  "$python" -m venv --without-pip "$folder"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (cd "$scratch" && apt-get download -qq python3-pip-whl && dpkg -x ./python3-pip-whl*.deb unpacked) || {
    echo "No pip for this Python. Install it with: sudo apt install python3-venv"
    exit 1
  }
  wheel=$(find "$scratch/unpacked" -name 'pip-*.whl' | head -n 1)
  "$folder/bin/python" "$wheel/pip" install --quiet --no-index --find-links "$(dirname "$wheel")" pip
fi
touch "$folder/.pip"
