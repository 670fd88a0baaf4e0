"""The linear probe: a task's head, fitted on features of the frozen base model."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

STEPS = 200
DECAY = 1e-3
LEAST_DEVIATION = 0.4  # of the mean deviation


class Head(NamedTuple):
    """A linear classifier on features: weight [classes, features], bias [classes]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, features]."""
        return features @ self.weight.T + self.bias


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> Head:
    """Fit multinomial logistic regression on all features at once, by L-BFGS.

    The features are standardised for the fit, which makes one penalty right for every model;
    the head returned takes them as they are. Features that hardly vary are scaled less, for
    their large weights would amplify whatever fine-tuning does to them.
    """
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
