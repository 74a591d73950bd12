"""Arrays as sources: files of NumPy, HDF5 and Zarr."""
