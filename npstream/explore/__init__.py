"""How datasets and columns show themselves."""
