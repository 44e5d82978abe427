"""python -m nuwaxl.bench.gpu"""

import sys

from nuwaxl.bench.gpu.cli import main

sys.exit(main())
