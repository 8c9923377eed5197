"""A recipe held against its teacher: what would run, and what each stage would train."""
