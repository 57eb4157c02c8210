#!/usr/bin/env bash
# The browser tests that meet the frontend's own code, on its newest release: .ci/newest_frontend.sh PYTHON
# All but test_looks.py, which measures by the sizes that nodes tell: Nodes 2.0 of 1.58 draws them taller.
set -euo pipefail
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! timeout 180 "$python" -m pip download -q --no-deps --dest "$folder" comfyui-frontend-package; then
  echo "SKIPPED the newest frontend: the package index can't be reached"
  exit 0
fi
wheel=$(basename "$folder"/*.whl)
version=$(echo "$wheel" | cut -d- -f2)
if [ "$version" = "$("$python" -c 'from importlib.metadata import version; print(version("comfyui-frontend-package"))')" ]; then
  echo "SKIPPED the newest frontend: $version is the one that was tested"
  exit 0
fi
"$python" -m zipfile -e "$folder/$wheel" "$folder"
began=$SECONDS
FEWSTEP_FRONTEND=$folder/comfyui_frontend_package/static timeout 1800 "$python" -m pytest -m browser \
  --ignore tests/browser/test_looks.py tests/browser
echo "The browser tests on the newest frontend, $version, took $((SECONDS - began)) s."
