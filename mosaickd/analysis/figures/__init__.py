"""Figures for a paper's column, from run folders; `python -m mosaickd.figures` is their command.

What is left out of a figure is logged as a warning.
"""
