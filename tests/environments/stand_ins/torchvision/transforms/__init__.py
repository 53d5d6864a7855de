from enum import Enum


class InterpolationMode(Enum):
    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC = "nearest", "nearest-exact", "bilinear", "bicubic"
    BOX, HAMMING, LANCZOS = "box", "hamming", "lanczos"


from . import functional, v2  # noqa: E402
from .functional import Missing, __getattr__  # noqa: E402
