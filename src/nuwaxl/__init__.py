"""nuwaxl: a compiled inference engine for very long video, after NUWA-XL's "Diffusion over Diffusion"."""

__version__ = "0.1.0"
