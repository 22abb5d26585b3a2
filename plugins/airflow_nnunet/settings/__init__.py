"""What a site and its teams have set: section [nnunet], connections, team files, folders of trainers."""
