"""A job: its specification, its folder, its signs of life, what it was granted and what it used."""
