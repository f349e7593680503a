"""What a task is: files, examples, encoding, batches. Never imports `adapters`."""
