"""A task's head, made of features of the frozen base model: a linear probe, or class means."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

STEPS = 200
DECAY = 1e-3
LEAST_DEVIATION = 0.4  # of the mean deviation
SHOTS = 10
LOGIT_SCALE = 20.0


class Labelled(NamedTuple):
    """Inputs, rows of token ids (0 is padding) or images, and their labels."""

    inputs: Tensor
    labels: Tensor


class Head(NamedTuple):
    """A linear classifier on features: weight [classes, features], bias [classes]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, features]."""
        return features @ self.weight.T + self.bias


def linear_probe(features_of: Callable[[Tensor], Tensor], data: Labelled, classes: int) -> Head:
    """Fit multinomial logistic regression on all features at once, by L-BFGS.

    The features are standardised for the fit, which makes one penalty right for every model;
    the head returned takes them as they are. Features that hardly vary are scaled less, for
    their large weights would amplify whatever fine-tuning does to them.
    """
    features, labels = features_of(data.inputs), data.labels
    mean, deviation = features.mean(0), features.std(0)
    scale = deviation.clamp_min(float(deviation.mean()) * LEAST_DEVIATION)
    standard = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = standard @ weight.T + bias
        loss = cross_entropy(logits, labels) + DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        folded = weight / scale
        return Head(folded, bias - folded @ mean)


def class_means(features_of: Callable[[Tensor], Tensor], data: Labelled, classes: int) -> Head:
    """The means of ten rows of each class, less their mean: logits are 20 times the cosine.

    Features have length 1, as the vision suites' networks give them.
    """
    rows = [data.labels.eq(label).nonzero().flatten()[:SHOTS] for label in range(classes)]
    means = torch.stack([features_of(data.inputs[chosen]).mean(0) for chosen in rows])
    return Head(LOGIT_SCALE * normalize(means - means.mean(0), dim=1), torch.zeros(classes))
