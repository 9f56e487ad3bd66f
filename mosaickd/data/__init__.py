"""Image sources: readers (one function a layout), `Source` (a reader with its settings), loaders.

A new source is a function `read(*, root, split, image_size, <own settings>) -> ImageSet`, a YAML
in `conf/dataset` that names it, and a test.
"""
