"""Sources that combine datasets: views end to end, and columns beside a dataset."""
