"""A run from its recipe to its report, and what it says on its way."""
