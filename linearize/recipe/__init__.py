"""The recipe: one TOML file that says all of a run, typed and checked before anything is loaded."""
