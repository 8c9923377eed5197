"""Linear recurrences: one plain-torch reference per family defines it; kernel backends must agree."""
