"""Reads what a site and its teams have set: section [nnunet], connections, team files and folders of trainers."""
