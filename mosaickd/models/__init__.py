"""Classifiers, generator and discriminator, their features, and files of their weights.

Every network is a plain `nn.Module`. Classifiers map images [B, 3, H, W] to logits
[B, num_classes]; `features` captures more with forward hooks at the module paths that `conf/model`
names.
"""
