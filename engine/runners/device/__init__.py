"""Memory of a device and the work queued on it: one small layer under the CUDA and the TensorRT runner.

`base` says what they ask, `cuda` gives it over CUDA's runtime, `host` in plain memory, so that the same runner code
runs on a machine without a GPU.
"""
