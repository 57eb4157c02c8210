"""Which Fewstep this is: what files, recipes and `fewstep --version` say.

Inside ComfyUI a pack is a folder and no installed distribution, so that importlib.metadata can't tell.
"""

VERSION = "0.1.0"  # as in pyproject.toml, where the registry and pip read it
METADATA_KEY = "fewstep.version"  # in the metadata of every safetensors file that is written
