"""Tables and figures of the paper as Hydra multiruns. (A package, so that pkg://sweeps is ours.)"""
