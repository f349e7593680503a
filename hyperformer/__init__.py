"""HyperFormer: what only training one T5 on many text-to-text tasks needs."""
