"""From conversations to batches: sources, sampling, collating, export."""
