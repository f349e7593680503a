"""Lifelong learning: training on tasks one after another without forgetting earlier ones."""
