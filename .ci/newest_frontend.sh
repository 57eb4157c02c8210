#!/usr/bin/env bash
# The browser tests that meet the frontend's own code, on its newest release: .ci/newest_frontend.sh PYTHON
# All files were seen to pass there (1.58.1) but test_looks.py in Nodes 2.0, which measures by the sizes that
# nodes tell: that frontend draws them taller. These are the ones that meet its code most.
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
  tests/browser/test_nodes.py tests/browser/test_graph.py tests/browser/test_faces.py \
  tests/browser/test_one_click.py tests/browser/test_use_it.py tests/browser/test_templates.py \
  tests/browser/test_compare.py
echo "The browser tests on the newest frontend, $version, took $((SECONDS - began)) s."
