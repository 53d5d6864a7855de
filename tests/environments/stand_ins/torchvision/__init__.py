"""In place of torchvision, whose wheels need the CUDA build of torch: SGLang imports it, and no test here calls it."""

from . import io, transforms

__version__ = "0.28.0"
