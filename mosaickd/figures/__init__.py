"""Figures for a paper's column, from the runs that made their numbers.

python -m mosaickd.figures NAME RUN [RUN ...]

Each is a file here with a function `draw(runs, options) -> Drawing`. They read what runs have
written; `domains` and `embedding` also ask the run's teacher, which `mosaickd.loaded_run` brings back.
"""
