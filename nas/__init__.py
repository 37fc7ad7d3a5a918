"""Joint search of network cells, bit-widths, batch sizes and the accelerator they run on.

import nas

run = nas.search("quickstart", trials=40)
run.leaderboard()
"""

from nas.run import Run, resume, search

__all__ = ["Run", "resume", "search"]
