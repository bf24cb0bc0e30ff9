"""The command ``fastseg`` as ``python -m fastseg``."""

import sys

from fastseg.cli import main

sys.exit(main())
