"""The one training loop and what stands on it: objectives, distillation, decoding, evaluation, run directories."""
