"""`python -m nuwaxl.train`, for launchers that start modules."""

import sys

from nuwaxl.commands import train

sys.exit(train())
