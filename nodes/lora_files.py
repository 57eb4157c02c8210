"""LoRA files of the user's, chosen by name."""

import folder_paths

from ..training.files import load_lora

NONE = "none"


def names():
    """For a dropdown: "none" and the files of models/loras."""
    return [NONE, *folder_paths.get_filename_list("loras")]


def tensors(name):
    """Those of the named file, cloned out of any mode; None for "none"."""
    return None if name == NONE else load_lora(folder_paths.get_full_path_or_raise("loras", name))[0]
