"""The evaluator "branches": what each branch of a student's mixers does, and what is lost without it."""
