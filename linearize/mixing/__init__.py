"""What mixers that take an attention's place have in common, so that an option which several share lives once."""
