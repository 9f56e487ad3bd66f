"""Which runs there are, how far each one is, and which are stuck. Looks only.

python -m mosaickd.status outputs/
"""
