"""The catalogue: recipes for torchvision's networks, and the demo network with its data (docs/models.md).

    catalogue   load(name, weights, size) → network, task, preprocessing, labels       torch, inside the call
    recipes     RECIPES: preprocessing, size, layers worth cutting at; figures: what was measured at them
    presets     torchvision's record of some weights → our Preprocessing, for any image size
    networks    torchvision's builders; weights: state dicts from files                 torch
    demo        the demo network and its images; the images alone need only numpy
    train       python -m splitwire.models.making.train_classifier: how the demo network was made         torch
    scenes      garments on backgrounds, with COCO annotations: python -m splitwire.models.making.scenes
    detector    a small detector for them; train_detector: how it was made              torch

Importing this package imports none of them.
"""
