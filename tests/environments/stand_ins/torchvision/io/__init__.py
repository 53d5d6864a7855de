from torchvision.transforms.functional import __getattr__


class ImageReadMode:
    UNCHANGED, GRAY, RGB = 0, 1, 3
