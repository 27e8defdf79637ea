"""`python -m prts_jax.cli COMMAND …`."""

import sys

from prts_jax.cli import main

sys.exit(main())
