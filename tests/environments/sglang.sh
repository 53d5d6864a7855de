#!/usr/bin/env bash
# Runs Python where SGLang's own scheduler runs on CPUs, with nothing of CUDA:
#     tests/environments/sglang.sh 0.5.23 -m pytest tests/sglang_engine tests/sglang
# The environment is kept in the user's cache folder, and made there (minutes, 3 GB) where it is absent or its recipe has
# changed: sglang-VERSION.txt with what it asks for, sglang-VERSION-alone.txt without, and stand_ins.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${1:-}
if [ ! -f "$here/sglang-$version.txt" ]; then
  echo "usage: $0 VERSION [ARGUMENTS of python], with VERSION one of:" >&2
  (cd "$here" && ls sglang-*[0-9].txt | sed 's/sglang-\(.*\)\.txt/  \1/') >&2
  exit 2
fi
shift
python=${PYTHON:-python3}
recipe=$(cd "$here" && { cat sglang.txt "sglang-$version.txt" "sglang-$version-alone.txt"; find stand_ins -name '*.py' | sort | xargs cat; "$python" -VV; } | sha256sum | cut -c1-10)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/raylaunch/environments
target=$folder/sglang-$version-$recipe
mkdir -p "$folder"
exec 9> "$target.lock"
flock 9 # whoever comes second finds it made
if [ ! -e "$target/made" ]; then
  {
    echo "making $target"
    rm -rf "$target"
    "$python" -m venv "$target"
    "$target/bin/python" -m pip install -q --no-compile -r "$here/sglang-$version.txt"
    "$target/bin/python" -m pip install -q --no-compile --no-deps -r "$here/sglang-$version-alone.txt"
    cp -r "$here"/stand_ins/* "$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    "$target/bin/python" -W ignore -c 'import sglang.srt.managers.scheduler, sglang.srt.entrypoints.http_server'
    touch "$target/made"
  } >&2
fi
exec 9>&-
root=$(cd "$here/../.." && pwd)
PYTHONPATH=$root:$root/actors${PYTHONPATH:+:$PYTHONPATH} exec "$target/bin/python" "$@"
