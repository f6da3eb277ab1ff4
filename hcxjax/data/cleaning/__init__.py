"""Cleaning: what is taken out of the text before it is trained on, step by step, and counted by reason."""
