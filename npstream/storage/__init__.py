"""Where files are: local directories and object stores."""
