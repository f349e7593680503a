"""Encoders, which turn examples into token ids; one file each."""
