class Missing:
    """May be made, and be a base; does nothing."""

    def __init__(self, *arguments, **options):
        pass

    def __call__(self, *arguments, **options):
        raise RuntimeError("there is no torchvision in this environment")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Missing() if name[0].islower() else Missing
