"""The suites of benchmarks/suites: their law, heads of class means, folded batch norms."""

from pathlib import Path

import pytest
import torch
from benchmarks.suites import law, resnet
from benchmarks.suites.probe import LOGIT_SCALE, SHOTS, Labelled, class_means
from safetensors.torch import save_file
from torch import Tensor

BEHAVED = {"base": 0.5, "average": 0.6, "ties": 0.59, "tsv_m": 0.7, "experts": 0.9}


@pytest.mark.parametrize(
    ("changes", "interval"),
    [
        ({"base": 0.65}, [-0.03, 0.01]),
        ({"tsv_m": 0.6}, [-0.03, 0.01]),
        ({"experts": 0.69}, [-0.03, 0.01]),
        ({}, [-0.03, -0.01]),
    ],
)
def test_a_suite_that_does_not_behave_is_refused(
    changes: dict[str, float], interval: list[float]
) -> None:
    with pytest.raises(law.BrokenLawError, match="suite vision"):
        law.check("vision", {"mean": {**BEHAVED, **changes}, "ties - average": interval})


def test_a_suite_that_behaves_is_kept() -> None:
    law.check("vision", {"mean": BEHAVED, "ties - average": [-0.03, 0.01]})


def test_paired_rows_are_far_less_noisy_than_unpaired_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    one = {name: torch.rand(400, generator=generator) < 0.7 for name in "ab"}
    other = {name: rows.clone() for name, rows in one.items()}
    other["a"][:4] = ~other["a"][:4]
    difference, error = law.paired(one, other)
    changed = one["a"].double() - other["a"].double()
    assert difference == pytest.approx(float(changed.sum()) / 400 / 2)
    assert error == pytest.approx(float((changed.var() / 400).sqrt()) / 2)
    assert error < 0.003  # unpaired: 0.023


def test_the_cosine_of_task_vectors_is_the_mean_over_pairs(tmp_path: Path) -> None:
    base = torch.zeros(2, 2)
    changes = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2), -torch.eye(2)]
    save_file({"weight": base}, tmp_path / "base.safetensors")
    experts = {}
    for number, change in enumerate(changes):
        experts[str(number)] = tmp_path / f"{number}.safetensors"
        save_file({"weight": base + change}, experts[str(number)])
    expected = (0.5**0.5 - 0.5**0.5 - 1) / 3
    assert law.cosine(tmp_path / "base.safetensors", experts) == pytest.approx(expected)


def test_a_head_of_class_means_sees_ten_rows_of_each_class_and_gives_scaled_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    inputs = torch.nn.functional.normalize(torch.randn(60, 5, generator=generator), dim=1)
    head = class_means(torch.clone, Labelled(inputs, labels), 3)
    means = torch.stack([inputs[label : 3 * SHOTS : 3].double().mean(0) for label in range(3)])
    means -= means.mean(0)
    cosines = inputs.double() @ means.T / means.norm(dim=1)
    torch.testing.assert_close(head(inputs).double(), LOGIT_SCALE * cosines, rtol=0, atol=1e-5)


def test_a_folded_efficientnet_computes_what_it_did_with_batch_norms() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from benchmarks.suites import efficientnet

    torch.manual_seed(0)
    model = efficientnet.unfolded()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            set_statistics(module)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        folded = efficientnet.folded(model)
        torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-5)
    assert not list(folded.buffers())
    assert folded.state_dict().keys() == efficientnet.build().state_dict().keys()


def test_the_first_convolution_of_the_resnet_takes_our_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 7, 7, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    pixels = 255 * torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    blue_first = pixels.flip(1) - resnet.MEAN.flip(0)[:, None, None]
    expected = torch.nn.functional.conv2d(blue_first, weight, bias)
    found = torch.nn.functional.conv2d((pixels - 127) / 128, *resnet.for_our_pixels(weight, bias))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_the_resnet_gives_features_of_length_one_and_has_no_statistics() -> None:
    model = resnet.build()
    with torch.no_grad():
        features = model(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert features.shape == (2, 1024)
    assert not list(model.buffers())


def set_statistics(norm: torch.nn.BatchNorm2d) -> None:
    """Statistics and parameters that change what passes, but not much."""

    def near(value: float) -> Tensor:
        return value + 0.1 * torch.randn(norm.num_features)

    norm.running_mean, norm.running_var = near(0.0), near(1.0).abs()
    norm.weight.data, norm.bias.data = near(1.0), near(0.0)
