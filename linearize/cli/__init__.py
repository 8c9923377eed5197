"""The command line."""

from linearize.cli.app import main

__all__ = ["main"]
