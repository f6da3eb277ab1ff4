"""Evaluators that a run calls along the way."""
