"""Training on pictures and masks: what ``fastseg train`` runs.

A run is a :class:`Trainer` with the settings of a :class:`Config`. ``OUT/last.pt`` holds its whole
state and is written after every epoch, and at once on Ctrl-C or SIGTERM; a resumed run has the
results of one that never stopped. ``OUT/best.pt`` holds the fp16 weights of the best validation
mIoU so far, ``OUT/history.json`` the loss of every epoch and the validation scores.

AdamW is the default rather than the papers' SGD: at the few thousand steps of a run on a CPU it
needs no search for a learning rate.
"""

from fastseg.train.config import Config
from fastseg.train.failures import TrainingError
from fastseg.train.trainer import Trainer

__all__ = ["Config", "Trainer", "TrainingError"]
