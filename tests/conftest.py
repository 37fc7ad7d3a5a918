"""What tests of training share."""

import numpy as np
import pytest

from nas import data


@pytest.fixture(scope="session")
def images():
    """2,000 training and 700 validation images of the sample, 16 x 16, normalized."""
    sample = data.load("cifar10-sample")
    mean, std = data.normalization(sample.train)

    def arrays(part, n):
        few = data.subset(part, n, seed=0)
        return ((data.resize(few.x, 16) / 255 - mean) / std).astype(np.float32), few.y

    return arrays(sample.train, 2000), arrays(sample.validation, 700)


@pytest.fixture(scope="module")
def trainer():
    from nas.train import Trainer

    return Trainer()
