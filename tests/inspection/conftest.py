"""An inspection that several tests look at."""

import cases
import pytest
import torch

from swsmix.inspection.inspect import inspect


@pytest.fixture(scope="package")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pt"
    torch.save(cases.resnet50(), path)
    return inspect(path)
