"""MosaicKD: knowledge distillation from out-of-domain images (Fang et al., NeurIPS 2021)."""

__version__ = "0.1.0"
