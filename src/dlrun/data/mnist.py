"""MNIST."""

from __future__ import annotations

from dlrun.data import DATASETS
from dlrun.data._idx import IdxSource, remote_files


@DATASETS.register("mnist")
class MNIST(IdxSource):
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28, 10 classes.

    Read in place from `<root>/MNIST/raw`, compressed or not; downloaded there when absent.

    Source: LeCun, Bottou, Bengio and Haffner (1998), "Gradient-Based Learning Applied to Document Recognition".

    Args:
        root: folder that holds the data sets; given by dlrun.
        cache: keep decoded copies of compressed files; given by dlrun.

    Shapes: inputs uint8 (N, 1, 28, 28), targets int64 (N,).

    Raises:
        ConfigError: a file is damaged, or absent and cannot be downloaded.
    """

    folders = ("MNIST", "mnist")
    class_names = tuple("0123456789")
    remote = remote_files(
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
    )
