"""Recipes: tested networks with their preprocessing and suggested cuts. Plain data that does not need torch.

To add a recipe, add an entry to RECIPES. The tests compare it with torchvision, and its layers with the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitwire.codec.profile import Preprocessing
from splitwire.codec.shared.tasks import Task
from splitwire.models import demo, figures

__all__ = ["RECIPES", "Recipe", "SuggestedCut", "Task"]


@dataclass(frozen=True, kw_only=True)
class SuggestedCut:
    """layer: the argument of --cut. figures: the measurements at this cut; None if there are none."""

    layer: str
    figures: figures.CutFigures | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network, as `catalogue.load` builds it by default.

    preprocessing: of torchvision's DEFAULT weights. input_shape: (1, C, H, W). layers: suggested layers to cut after,
    in execution order. If several tensors cross (a pyramid), all are sent. parameters: of the exported network. macs:
    multiply-accumulates of convolutions and matrix products, for one image of
        input_shape; None if they depend on the content of the image.
    classes: their number, and the source of their names.
    """

    name: str
    task: Task
    preprocessing: Preprocessing
    layers: tuple[str, ...]
    parameters: int
    macs: int | None
    classes: str

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return (1, 3, *self.preprocessing.crop)

    @property
    def cuts(self) -> tuple[SuggestedCut, ...]:
        """The layers with their measurements, followed by other measured cuts."""
        known = {f.cut: f for f in figures.read().get(self.name, ())}
        named = [SuggestedCut(layer=layer, figures=known.pop(layer, None)) for layer in self.layers]
        return (*named, *(SuggestedCut(layer=layer, figures=f) for layer, f in known.items()))


def _imagenet(margin: int, interpolation: Literal["bilinear", "bicubic"] = "bilinear") -> Preprocessing:
    return Preprocessing(resize=margin, crop=(224, 224), interpolation=interpolation)


def _classifier(name: str, preprocessing: Preprocessing, layers: str, *, parameters: int, macs: int) -> Recipe:
    return Recipe(
        name=name,
        task="classification",
        preprocessing=preprocessing,
        layers=tuple(layers.split()),
        parameters=parameters,
        macs=macs,
        classes="1,000 of ImageNet-1k",
    )


def _segmenter(name: str, layers: str, *, parameters: int, macs: int) -> Recipe:
    return Recipe(
        name=name,
        task="segmentation",
        preprocessing=Preprocessing(resize=520, crop=(520, 520)),
        layers=tuple(layers.split()),
        parameters=parameters,
        macs=macs,
        classes="21 of Pascal VOC, with background",
    )


def _detector(name: str, side: int, layers: str, *, parameters: int, macs: int | None) -> Recipe:
    whole = Preprocessing(resize=(side, side), crop=(side, side), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Recipe(
        name=name,
        task="detection",
        preprocessing=whole,
        layers=tuple(layers.split()),
        parameters=parameters,
        macs=macs,
        classes="91 numbers of COCO, with background and unused ones",
    )


_RESNET = "maxpool layer1 layer2 layer3 layer4"
_BACKBONE = "backbone.maxpool backbone.layer1 backbone.layer2 backbone.layer3 backbone.layer4"

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name=demo.NAME,
            task="classification",
            preprocessing=demo.PREPROCESSING,
            layers=(demo.CUT,),
            parameters=727_626,
            macs=14_078_144,
            classes="10 of Fashion-MNIST",
        ),
        _classifier("resnet18", _imagenet(256), _RESNET, parameters=11_689_512, macs=1_814_073_344),
        _classifier("resnet50", _imagenet(232), _RESNET, parameters=25_557_032, macs=4_089_184_256),
        _classifier(
            "vgg16",  # after each pooling
            _imagenet(256),
            "features.4 features.9 features.16 features.23 features.30",
            parameters=138_357_544,
            macs=15_470_264_320,
        ),
        _classifier(
            "mobilenet_v2",  # linear bottlenecks; and two ReLU6 expansions, larger, but with many zeros
            _imagenet(232),
            "features.1 features.2 features.4 features.7.conv.0 features.7 features.13 features.14.conv.0 features.14",
            parameters=3_504_872,
            macs=300_774_272,
        ),
        _classifier(
            "mobilenet_v3_large",
            _imagenet(232),
            "features.1 features.3 features.6 features.10 features.12 features.15",
            parameters=5_483_032,
            macs=216_589_760,
        ),
        _classifier(
            "efficientnet_b0",
            _imagenet(256, "bicubic"),
            "features.1 features.2 features.3 features.4 features.5 features.6",
            parameters=5_288_548,
            macs=385_814_752,
        ),
        _classifier(
            "regnet_y_400mf",
            _imagenet(232),
            "stem trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4",
            parameters=4_344_144,
            macs=401_842_848,
        ),
        _classifier(
            "convnext_tiny",
            _imagenet(236),
            "features.1 features.3 features.5 features.7",
            parameters=28_589_128,
            macs=4_455_531_264,
        ),
        _classifier(
            "vit_b_16",  # the same 197 tokens after every layer, so early ones
            _imagenet(256),
            "encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_2 encoder.layers.encoder_layer_5"
            " encoder.layers.encoder_layer_8",
            parameters=86_567_656,
            macs=17_563_828_224,
        ),
        _classifier(
            "swin_t",
            _imagenet(232, "bicubic"),
            "features.1 features.3 features.5 features.7",
            parameters=28_288_354,
            macs=4_490_566_656,
        ),
        _segmenter("deeplabv3_resnet50", f"{_BACKBONE} classifier.0", parameters=39_638_869, macs=168_731_205_888),
        _segmenter("fcn_resnet50", f"{_BACKBONE} classifier.2", parameters=32_957_013, macs=142_725_772_800),
        _detector(
            "ssdlite320_mobilenet_v3_large",
            320,
            "backbone.features.0.3 backbone.features.0.6 backbone.features.0.10 backbone.features.0.12"
            " backbone.features.0 backbone",
            parameters=3_440_060,
            macs=583_171_904,
        ),
        _detector(
            "ssd300_vgg16",
            300,
            "backbone.features.9 backbone.features.16 backbone.features backbone",
            parameters=35_641_826,
            macs=34_858_153_472,
        ),
        _detector(
            "retinanet_resnet50_fpn_v2",  # the pyramid of the backbone, C3 to C5, then P3 to P7
            640,
            "backbone.body.layer1 backbone.body.layer2 backbone.body backbone",
            parameters=38_198_935,
            macs=97_293_075_200,
        ),
        _detector(
            "fasterrcnn_resnet50_fpn_v2",
            640,
            "backbone.body.maxpool backbone.body.layer1 backbone.body backbone",
            parameters=43_712_278,
            macs=None,
        ),
        _detector(
            "maskrcnn_resnet50_fpn_v2",
            640,
            "backbone.body.maxpool backbone.body.layer1 backbone.body backbone",
            parameters=46_359_409,
            macs=None,
        ),
    )
}
"""Name → recipe, in the order of the list in `splitwire models`."""
