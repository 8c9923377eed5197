"""Corpora of running text: documents from files and datasets, cut into rows of tokens."""
