"""How each format is served: files that need nothing of this package, shown in reports and run to verify artifacts.

Every one has ``load(path, threads)``, which gives a function from a float32 array of shape (N, 3, H, W) to one of shape
(N, classes).
"""
