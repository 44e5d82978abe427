"""TensorRT plans of a bundle's graphs: building, gate, refit and estimate; `engine/plans.py` says what a plan is."""
