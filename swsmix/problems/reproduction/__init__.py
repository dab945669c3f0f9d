"""Running a paper again: `swsmix reproduce` calls `papers/NAME/run.py`, which calls this.

runner   Paper, main: units become results, and results become figures
units    Unit, read_table: a call whose result is kept, and the files that keep it
signals  what ends a run: Ctrl-C, SIGTERM, a parent that was killed
"""
