"""`python -m nuwaxl.train`, for launchers that start modules."""

import sys

from nuwaxl.train.cli import main

sys.exit(main())
