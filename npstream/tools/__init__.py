"""Commands: build a side-car, verify a dataset, precompile kernels, self-test, demo."""
