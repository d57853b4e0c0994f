"""Images in [0, 1] with their labels: scikit-learn's digits, and CIFAR-10 for those who have the files."""

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Images(NamedTuple):
    """pixels (items, channels, height, width) in [0, 1], labels (items,)."""

    pixels: Tensor
    labels: Tensor

    def at(self, rows: Tensor) -> "Images":
        return Images(self.pixels[rows], self.labels[rows])


def digits() -> Images:
    """1797 digits of 8 × 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.as_tensor(found.images / 16.0, dtype=torch.float32)[:, None]
    return Images(pixels, torch.as_tensor(found.target, dtype=torch.int64))


class Plain(pickle.Unpickler):
    """Reads dictionaries of bytes, numbers and arrays, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"A CIFAR-10 batch holds no {module}.{name}; this file does.")


def cifar10(folder: Path) -> Images:
    """The five training batches in the folder: data_batch_1 … of the Python version, or data_batch_1.bin … of the binary one.

    https://www.cs.toronto.edu/~kriz/cifar.html: 10 000 rows a batch, 3072 bytes an image (red, green, blue planes, row by
    row); in the binary version the label's byte comes first. Raises FileNotFoundError where there is none.
    """
    pixels, labels = [], []
    for k in range(1, 6):
        plain, binary = folder / f"data_batch_{k}", folder / f"data_batch_{k}.bin"
        if plain.exists():
            with plain.open("rb") as file:
                batch = Plain(file, encoding="bytes").load()
            pixels.append(np.asarray(batch[b"data"], dtype=np.uint8))
            labels.append(np.asarray(batch[b"labels"]))
        elif binary.exists():
            rows = np.fromfile(binary, dtype=np.uint8)
            if rows.size % 3073:
                raise ValueError(
                    f"{binary} has {rows.size} bytes, which is no multiple of 3073: one label, 3072 of pixels."
                )
            rows = rows.reshape(-1, 3073)
            pixels.append(rows[:, 1:])
            labels.append(rows[:, 0])
    if not pixels:
        raise FileNotFoundError(f"{folder} has neither data_batch_1 nor data_batch_1.bin: unpack CIFAR-10 there.")
    found = np.concatenate(pixels).reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return Images(torch.as_tensor(found), torch.as_tensor(np.concatenate(labels).astype(np.int64)))
