"""Defines the codes of what can be wrong with a dataset, with their meaning and their fixes."""
