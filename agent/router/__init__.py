"""Decides each job's route and carries the decision out: `router` is where to begin."""
