"""Learns from a model's dense pictures what its attention entropy says, and how much may be pruned where."""
