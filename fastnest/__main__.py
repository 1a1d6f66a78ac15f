"""``python -m fastnest``."""

import sys

from fastnest.cli import main

sys.exit(main())
