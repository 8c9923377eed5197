"""``python -m linearize`` is the command line, also from a checkout that was never installed."""

from __future__ import annotations

from linearize.cli.app import main

if __name__ == "__main__":
    main()
