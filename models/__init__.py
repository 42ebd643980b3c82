"""The catalogue: recipes for torchvision's networks, and the demo network with its data (docs/models.md).

    catalogue   load(name, weights, size) → network, task, preprocessing, labels       torch, inside the call
    recipes     RECIPES: preprocessing, size, suggested layers to cut after; figures: measurements at these cuts
    presets     torchvision's metadata of weights → our Preprocessing, for any image size
    networks    torchvision's builders; weights: state dicts from files                 torch
    demo        the demo network and its images; the images need only numpy
    detector    a small detector of garments                                            torch
    making      maintainers' code: trains both networks (train_classifier, train_detector), and composes scenes of
                garments with COCO annotations (scenes)                                 torch

The import of this package imports none of them.
"""
