"""The Triton forms. Each module holds its kernels, how they are cut into programs, and what launches them."""
