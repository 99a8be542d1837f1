"""Fashion-MNIST."""

from __future__ import annotations

from dlrun.data import DATASETS
from dlrun.data._idx import IdxSource, remote_files


@DATASETS.register("fashion_mnist")
class FashionMNIST(IdxSource):
    """Photographs of clothing: 60,000 + 10,000 grey images of 28x28, 10 classes, in the files of MNIST.

    Read in place from `<root>/FashionMNIST/raw`, compressed or not; downloaded there when absent.

    Source: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms".

    Args:
        root: folder that holds the data sets; given by dlrun.
        cache: keep decoded copies of compressed files; given by dlrun.

    Shapes: inputs uint8 (N, 1, 28, 28), targets int64 (N,).

    Raises:
        ConfigError: a file is damaged, or absent and cannot be downloaded.
    """

    folders = ("FashionMNIST", "fashion_mnist", "fashion-mnist", "fashionmnist")
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    remote = remote_files(
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
    )
