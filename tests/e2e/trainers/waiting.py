"""A trainer that stays in its third epoch until the test lets it go on: "while it trains" is a state, not a race."""

import os
import time
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: TID253  (only trainings read this file)


class WaitsInEpochThree(nnUNetTrainer):
    """Goes on when the site's file ``go`` is there."""

    def on_epoch_start(self):
        while self.current_epoch == 2 and not Path(os.environ["E2E_ROOT"], "go").exists():
            time.sleep(0.05)
        super().on_epoch_start()
