"""Processes in which foreign files are read. They may hang, crash or run out of memory without harm to the step."""
