#!/usr/bin/env bash
# Install what a ComfyUI folder needs into a Python environment that has CPU PyTorch already.
#   .ci/host.sh PYTHON COMFYUI_FOLDER
# torchvision and torchaudio have no CPU build in the registry: their Python parts are enough for the host to start.
set -euo pipefail
python=$1
comfy=$2
# the Python-only packages that would drag in CUDA builds of torch go in without their dependencies
bare='^(torch|torchvision|torchaudio|kornia|spandrel)([<>=~!].*)?$'
grep -vE "$bare|^#" "$comfy/requirements.txt" > /tmp/fewstep-host-requirements.txt
"$python" -m pip install -q --no-deps torchvision==0.28.0 torchaudio==2.11.0 spandrel kornia kornia_rs
"$python" -m pip install -q -r /tmp/fewstep-host-requirements.txt
"$python" - <<'PY'
import pathlib
import sysconfig

site = pathlib.Path(sysconfig.get_paths()["purelib"])
for library in (site / "torchaudio" / "lib").glob("*.so"):
    library.unlink()
extension = site / "torchvision" / "extension.py"
text = extension.read_text()
define = '''
if not _has_ops():      # no compiled operators in this environment: declare them, so that the package imports
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''
if "torch.library.Library" not in text:
    extension.write_text(text.replace("\ndef _assert_has_ops", define + "\n\ndef _assert_has_ops", 1))
PY
