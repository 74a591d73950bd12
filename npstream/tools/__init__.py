"""Commands over whole datasets: build a side-car, verify, precompile, demo."""
