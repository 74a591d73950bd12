"""Sources that combine datasets: concatenated views, and columns that were added to a dataset."""
