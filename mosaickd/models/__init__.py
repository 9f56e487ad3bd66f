"""Classifiers, the two adversaries, and reading and writing their weights.

Every network is a plain ``nn.Module``. Classifiers map images [B, 3, H, W] to logits
[B, num_classes]; methods that want more take it with forward hooks at the module paths which
``conf/model`` names.
"""
