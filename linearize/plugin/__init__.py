"""The whole extension surface: hooks, specs, options, and the registry that plug-ins fill."""
