"""Coverage-guided fuzzing of all that reads what strangers send. See docs/fuzzing.md."""
