"""``python -m raylaunch``: the same as the console script, for ``ray job submit``."""

from __future__ import annotations

from raylaunch.cli import main

if __name__ == "__main__":
    main()
