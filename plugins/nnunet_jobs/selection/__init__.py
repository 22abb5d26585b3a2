"""Compares, ensembles and postprocesses complete folds into one model with a card, which may be promoted."""
