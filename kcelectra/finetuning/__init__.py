"""Downstream tasks: their data, and what a model or a vocabulary makes of it."""
