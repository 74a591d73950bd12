"""Access to files in local directories and object stores."""
