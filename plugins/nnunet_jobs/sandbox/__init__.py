"""Reads foreign files in separate processes, which may hang, crash or run out of memory without harm to the step."""
