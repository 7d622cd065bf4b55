"""What stands around many runs; a run itself imports nothing of it."""
