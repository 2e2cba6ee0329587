"""Classes for the images of a measurement."""

from math import gcd

GOLDEN_RATIO = 0.618


def spread_classes(classes: int, count: int) -> list[int]:
    """Classes for `count` images; those of the first images are spread over all classes too.

    Neighbouring classes are often alike: the first hundred of ImageNet are animals.

    Args:
        classes: number of classes of the model.
        count: number of images.
    """
    # A stride without a common divisor reaches all classes before it repeats one.
    stride = max(1, round(classes * GOLDEN_RATIO))
    while gcd(stride, classes) != 1:
        stride += 1
    return [index * stride % classes for index in range(count)]
