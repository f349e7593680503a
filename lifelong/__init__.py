"""Lifelong learning: tasks met one after another, without forgetting those before."""
