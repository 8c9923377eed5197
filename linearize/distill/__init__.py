"""Distillation: stages in order, one loop for every objective, checkpoints that resume to the bit."""
