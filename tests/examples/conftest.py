"""Makes the modules of the examples importable, as they are for each other when one of them is run."""

import sys

import commands

sys.path += [str(commands.ROOT / "examples" / folder) for folder in ("quickstart", "efficiency")]
