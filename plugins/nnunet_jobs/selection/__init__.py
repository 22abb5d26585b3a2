"""Selection: complete folds compared, ensembled and postprocessed into one described model that may be promoted."""
