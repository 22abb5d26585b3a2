"""Defines the parameters and results of each step, and the rules inside parameters."""
