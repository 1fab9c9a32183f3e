"""A simulated board: the real interpreter running the unmodified firmware in a modelled physical world."""
