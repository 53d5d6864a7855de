"""``python -m raylaunch``: the same as the console script, for ``ray job submit``."""

from __future__ import annotations

import sys

from raylaunch.errors import ConfigError
from raylaunch.startup.shadows import require_unshadowed

if __name__ == "__main__":
    try:
        require_unshadowed()  # the working directory comes first here: what the next line imports could be the user's
    except ConfigError as error:
        print(f"ConfigError {error}", file=sys.stderr)
        sys.exit(2)
    from raylaunch.cli import main

    main()
