"""Sources whose samples consist of files: folders and tars."""
