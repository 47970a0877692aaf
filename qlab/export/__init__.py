"""To the files of others, and back."""

from qlab.export.folder import is_quantized_folder, load_folder, save_folder

__all__ = ["is_quantized_folder", "load_folder", "save_folder"]
