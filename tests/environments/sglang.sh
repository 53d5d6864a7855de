#!/usr/bin/env bash
# Prints the interpreter of an environment in which SGLang's own scheduler runs on CPUs, nothing of CUDA in it:
#     $(tests/environments/sglang.sh 0.5.23) -m pytest tests/sglang_engine tests/sglang
# It is kept in the user's cache folder, and made there (minutes, 3 GB) where it is absent or its recipe has changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${1:-}
if [ ! -f "$here/sglang-$version.txt" ]; then
  echo "usage: $0 VERSION, one of: $(cd "$here" && ls sglang-*[0-9].txt | sed 's/sglang-\(.*\)\.txt/\1/' | tr '\n' ' ')" >&2
  exit 2
fi
python=${PYTHON:-python3}
recipe=$(cd "$here" && { cat sglang.sh sglang.txt "sglang-$version"*.txt; find stand_ins -name '*.py' | sort | xargs cat; "$python" -VV; } | sha256sum | cut -c1-10)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/raylaunch/environments
target=$folder/sglang-$version-$recipe
mkdir -p "$folder"
exec 9> "$target.lock"
flock 9  # whoever comes second finds it made
if [ ! -e "$target/made" ]; then
  {
    rm -rf "$target"
    "$python" -m venv "$target"
    "$target/bin/python" -m pip install -q torch==2.13.0
    "$target/bin/python" -m pip install -q -r "$here/sglang-$version.txt"
    "$target/bin/python" -m pip install -q --no-deps -r "$here/sglang-$version-alone.txt"
    cp -r "$here"/stand_ins/* "$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    "$target/bin/python" -W ignore -c 'import sglang.srt.managers.scheduler, sglang.srt.entrypoints.http_server'
    touch "$target/made"
  } >&2
fi
echo "$target/bin/python"
