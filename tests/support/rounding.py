"""What float32 rounding may change between two ways to compute the same, and what it may not.

Passes that add the same numbers in another order (packed or padded, one rank or two, compiled or not) round differently,
and how they do depends on the processor: on its vector instructions, and on the libraries that use them. To see another
processor's rounding, run the tests with ATEN_CPU_CAPABILITY=default or avx2 (torch) and MKL_CBWR=COMPATIBLE (matrix
products, as Intel's library computes them on an AMD processor). Tests of such passes compare norms, within the bounds
below. Bits are compared only where the same operations run in the same order: resuming, one configuration twice.

Values and gradients. Float32 rounds a result by up to UNIT = 2^-24 of itself. The errors of a sum of n products are of mean
zero and nearly independent, so they come to about sqrt(n) UNIT of the products' norm (Higham and Mary 2019, SIAM J. Sci.
Comput. 41, A2815), and along k such operations to sqrt(k n) UNIT. The tests' models sum up to n = 2,048 terms (a width, a
vocabulary, a batch's tokens), in k = 64 operations from the ids through two blocks to the loss and back. Two passes that
are compared both round: GRADIENT is twice that bound, 4.3e-5 of the norm. Seen: 3e-7 to 2e-6, whatever the processor.

This holds where the function is smooth. ReLU's slope jumps from 0 to 1: an activation within rounding of 0 adds or leaves
out a token's whole share of a neuron (1e-3 of the gradient's norm was seen, with AVX2 instructions, of one activation of
OPT). So gradients are compared of models with smooth activations; OPT has GELU instead (`smooth_models` of conftest.py).

Steps. AdamW divides an element's gradient by its own size: a step has nearly the gradient's sign, so that the few elements
whose gradient is no larger than its error may move by up to two learning rates in the one pass against the other. Where
errors are GRADIENT of the elements' root mean square, and the elements' density at 0 is at most 10 per root mean square
(1 for a Gaussian; embeddings have many small ones), a share p = 2 * 10 * GRADIENT of them may, and two steps differ by
2 sqrt(p) of their norm: STEP, 0.06. A gradient with an error of 1 % gives nearly twice that (test_rounding.py), but a step
hides a wrong factor: whoever compares steps compares gradients too, before they are clipped.
"""

import math
from collections.abc import Sequence

from torch import Tensor

UNIT = 2.0**-24
GRADIENT = 2 * math.sqrt(64 * 2048) * UNIT
STEP = 2 * math.sqrt(2 * 10 * GRADIENT)
# Some gradients are zero but for rounding, as those of a key's bias, which adds the same to all logits of a softmax: a
# tensor whose gradient is smaller than this share of the whole is compared with this share.
SHARE = 0.1


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all elements of the tensors together."""
    return math.hypot(*(float(tensor.detach().double().norm()) for tensor in tensors))


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[Tensor]:
    """The differences of tensors, in float64."""
    return [a.detach().double() - b.detach().double() for a, b in zip(found, expected, strict=True)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Two passes computed the same values: no element is further off than rounding is of their root mean square, times 5
    (the largest of a million Gaussian errors)."""
    scale = norm([expected]) / math.sqrt(expected.numel())
    gap = float((found.detach().double() - expected.detach().double()).abs().max()) / scale
    assert gap <= 5 * GRADIENT, f"values differ by {gap:.2g} of their size, more than rounding ({5 * GRADIENT:.2g})"


def gradient_gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of a tensor's gradient as a share of its norm, or of SHARE of the norm of all."""
    least = SHARE * norm(expected)
    errors = difference(found, expected)
    assert least > 0, "no gradient at all"
    return max(norm([error]) / max(norm([right]), least) for error, right in zip(errors, expected, strict=True))


def step_gap(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """How far two steps from the weights `before` differ, as a share of the expected step's norm."""
    step = norm(difference(expected, before))
    assert step > 0, "no step at all"
    return norm(difference(found, expected)) / step


def assert_same_gradients(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Two passes computed the same gradients, of a smooth function, but for rounding."""
    gap = gradient_gap(found, expected)
    assert gap <= GRADIENT, f"gradients differ by {gap:.2g} of their norm, more than rounding ({GRADIENT:.2g})"


def assert_same_step(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Two updates by AdamW went the same way from the weights `before`, but for rounding."""
    gap = step_gap(found, expected, before)
    assert gap <= STEP, f"steps differ by {gap:.2g} of their norm, more than rounding ({STEP:.2g})"
