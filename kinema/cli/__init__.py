"""The command line is the pipeline: five verbs that read and write artifacts, one file each.

Nothing here imports JAX until a verb runs.
"""

# The order of the help.
# isort: off
from kinema.cli.app import app, main
from kinema.cli import simulate, learn, generate, steer, verify
from kinema.cli import study, report, listing, demo

# isort: on

__all__ = ["app", "demo", "generate", "learn", "listing", "main", "report", "simulate", "steer", "study", "verify"]
