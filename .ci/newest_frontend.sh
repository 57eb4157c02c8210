#!/usr/bin/env bash
# The browser tests that meet the frontend's own code, on its newest release: .ci/newest_frontend.sh PYTHON
# What runs longest (training, every template's run) is left out, and it ends after half an hour at most.
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
tests=tests/browser
began=$SECONDS
FEWSTEP_FRONTEND=$folder/comfyui_frontend_package/static timeout 1800 "$python" -m pytest -m browser \
  $tests/test_graph.py $tests/test_nodes.py $tests/test_compare.py $tests/test_limits.py $tests/test_templates.py \
  -k "not runs_from_its_button"
echo "The browser tests on the newest frontend, $version, took $((SECONDS - began)) s."
