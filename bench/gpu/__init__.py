"""`make gpu`: what a machine with a GPU must show, measured there by one command (docs/gpu.md).

Every piece runs in a process of its own with a time limit, and writes what it found as it finds it, so that one that
fails or is stopped takes nothing with it. All pieces run on the CPU at a tiny size too, which is how they are tested.
"""
