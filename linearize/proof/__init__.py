"""What a teacher adapter says of its attentions, held against what the model computes."""
