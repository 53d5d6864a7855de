from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import __getattr__

from . import functional
