"""Train a model on CamVid: ``python -m fastseg.train --data DIR --out DIR``.

``OUT/last.pt`` holds the whole state of the run and is written after every epoch, and at once on
Ctrl-C or SIGTERM; ``--resume`` goes on from it with the results of a run that never stopped.
``OUT/best.pt`` holds the fp16 weights of the best validation mIoU so far, ``OUT/history.json`` the
loss of every epoch and the validation scores.

Any model of ``fastseg.models`` by ``--model`` and its builder's arguments by ``--option``; its
backbone may start from ImageNet (``--backbone-weights``).

AdamW rather than the paper's SGD: at the few thousand steps of a run on a CPU it needs no search
for a learning rate.
"""

from fastseg.train.config import Config
from fastseg.train.trainer import Trainer

__all__ = ["Config", "Trainer"]
