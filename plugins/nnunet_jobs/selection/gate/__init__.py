"""The gate: whether a challenger takes the champion's place. Pure arithmetic on scores; files are read and written elsewhere.

scores.py      cases with their Dice, paired differences by patient and by label
history.py     earlier decisions: the budget that is spent, the spread between trainings, how lucky the champion was
decision.py    one decision by a policy, with its reason and its record
"""
