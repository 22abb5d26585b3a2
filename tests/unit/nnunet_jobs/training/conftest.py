"""The warm process and the preprocessed phantom that the tests of the training share."""

from support.training_fixtures import phantom, warm

__all__ = ["phantom", "warm"]
