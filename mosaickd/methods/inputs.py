"""What a method's constructor may ask for: said here once, read without importing torch."""

from __future__ import annotations

#: By the constructor's keyword, what the launcher hands over. All other keywords are settings of
#: the method's YAML.
INPUTS: dict[str, str] = {
    "student": "the network that learns: images [B, 3, H, W] -> logits [B, C]",
    "teacher": "the same map; frozen, in eval mode, trained before the first iteration",
    "generator": "latents [n, latent_dim] -> images [n, 3, H, W] in [0, 1]",
    "discriminator": "images [B, 3, H, W] -> logits of patches [B, 1, h, w]",
    "student_features": "FeatureExtractor at the paths student.features: logits, maps [B, c, h, w]",
    "teacher_features": "FeatureExtractor at the paths teacher.features: logits, maps [B, c, h, w]",
    "student_embedding": "FeatureExtractor at student.embedding: logits, vectors [B, D]",
    "teacher_embedding": "FeatureExtractor at teacher.embedding: logits, vectors [B, D]",
    "teacher_bn_stats": "BatchNormStatsHook: logits, and statistics [c] at each teacher batch norm",
    "normalize": "images in [0, 1] -> images as the networks take them (in-domain mean and std)",
    "latents": "n -> standard normal noise [n, latent_dim]; its state is part of a checkpoint",
    "augment": "random crop and flip of a batch [B, 3, H, W]",
    "rng": "torch.Generator on the device, for a method's own draws; part of a checkpoint",
    "gather": "tensor [n, ...] -> those of all processes [world * n, ...], without gradients",
    "batch_size": "images a batch of this process: its part of train.batch_size",
    "num_classes": "C, classes of the teacher's domain",
    "image_size": "H = W, pixels",
    "instances": "how many OOD images there are, after ood_subset",
    "steps": "iterations of the run",
}
