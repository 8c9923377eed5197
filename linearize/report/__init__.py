"""What a run found, for people (terminal, Markdown, one HTML page) and for programs (JSON). Imports no torch."""
