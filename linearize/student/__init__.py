"""The converted model: both mixers in one slot, the recurrent state in transformers' Cache, students as folders."""
