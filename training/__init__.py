"""The training loop and what builds on it: objectives, distillation, decoding, evaluation and run directories."""
