"""Directories in the formats of others, read as they are."""
