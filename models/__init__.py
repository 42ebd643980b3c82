"""The catalogue: recipes for torchvision's networks, and the demo network with its data (docs/models.md).

    catalogue   load(name, weights) → network, preprocessing, input shape, labels      torch, inside the call
    demo        the demo network and its images; the images alone need only numpy
    train       python -m splitwire.models.train: how the demo network was made         torch

Importing this package imports none of them.
"""
