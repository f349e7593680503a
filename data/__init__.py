"""Tasks: their files, examples, encoding and batches. Never imports `adapters`."""
