"""The loss of a window: closed forms of the continuity term, what the weights do, and the window of one token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reco_tune.model import VideoTransformer
from reco_tune.training import window_loss
from reco_tune.training.objectives import continuity_term, norm_term

WIDTH = 16


def make_model() -> VideoTransformer:
    return VideoTransformer(20, 12, 3, WIDTH, 2, 2, generator=torch.Generator().manual_seed(0)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, (4, 12), generator=generator), torch.randint(3, (4,), generator=generator)


def random_hidden() -> Tensor:
    return torch.randn(3, 7, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_constant_states_cost_nothing() -> None:
    assert continuity_term(torch.full((3, 7, WIDTH), 2.5, dtype=torch.float64), "sum") == 0


def test_states_on_a_line_cost_the_square_of_one_step() -> None:
    step = torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
    line = torch.arange(7, dtype=torch.float64)[None, :, None] * step
    assert continuity_term(line, "sum").item() == pytest.approx(step.square().sum().item(), rel=1e-12)


def test_gradient_is_the_laplacian_of_a_path() -> None:
    """d/dh of 1/(B(W-1)) Σ ||h_{i+1} - h_i||² is 2/(B(W-1)) L h, L the graph Laplacian of the path 1 - 2 - ... - W."""
    hidden = random_hidden().requires_grad_()
    clips, length, _ = hidden.shape
    laplacian = (
        torch.diag(torch.tensor([1.0, *[2.0] * (length - 2), 1.0]))
        - torch.diag(torch.ones(length - 1), 1)
        - torch.diag(torch.ones(length - 1), -1)
    )
    expected = 2 / (clips * (length - 1)) * laplacian.double() @ hidden.detach()
    (gradient,) = torch.autograd.grad(continuity_term(hidden, "sum"), hidden)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("term", [continuity_term, norm_term])
def test_sum_is_the_mean_times_the_width_and_both_grow_with_the_square(term) -> None:  # type: ignore[no-untyped-def]
    hidden = random_hidden()
    assert term(hidden, "sum").item() == pytest.approx(WIDTH * term(hidden, "mean").item(), rel=1e-12)
    assert term(3 * hidden).item() == pytest.approx(9 * term(hidden).item(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("state", ["last_block", "final_norm"])
def test_total_is_what_the_weights_say(reduction, state) -> None:  # type: ignore[no-untyped-def]
    model, (tokens, labels) = make_model(), batch()
    terms = window_loss(
        model, tokens, labels, 2, 6, 0.1, continuity_reduction=reduction, continuity_state=state, norm_weight=0.3
    )
    hidden = model.window(tokens, labels, 2, 6).hidden_BWD
    hidden = hidden if state == "last_block" else model.final_norm(hidden)
    torch.testing.assert_close(terms.continuity, continuity_term(hidden, reduction).detach())
    torch.testing.assert_close(terms.norm, norm_term(hidden, reduction).detach())
    torch.testing.assert_close(terms.total.detach(), terms.cross_entropy + 0.1 * terms.continuity + 0.3 * terms.norm)
    assert terms.total.requires_grad and not any(term.requires_grad for term in terms[1:])


def test_without_weights_the_total_is_the_cross_entropy_and_the_terms_are_still_told() -> None:
    model, (tokens, labels) = make_model(), batch()
    terms = window_loss(model, tokens, labels, 2, 6)
    assert terms.total.item() == terms.cross_entropy.item()
    assert terms.continuity > 0 and terms.norm > 0


def test_a_weight_changes_the_gradient_by_that_of_its_term() -> None:
    model, (tokens, labels) = make_model(), batch()
    parameters = [p for name, p in model.named_parameters() if name.startswith("blocks.0")]
    plain = torch.autograd.grad(window_loss(model, tokens, labels, 2, 6).total, parameters)
    both = torch.autograd.grad(window_loss(model, tokens, labels, 2, 6, continuity_weight=0.5).total, parameters)
    term = torch.autograd.grad(continuity_term(model.window(tokens, labels, 2, 6).hidden_BWD), parameters)
    for a, b, c in zip(plain, both, term, strict=True):
        torch.testing.assert_close(b - a, 0.5 * c, rtol=0, atol=1e-14)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    model, (tokens, labels) = make_model(), batch()
    torch.nn.init.zeros_(model.head.weight)
    assert window_loss(model, tokens, labels, 3, 5).cross_entropy.item() == pytest.approx(math.log(20), rel=1e-12)


def test_a_window_of_one_token_has_no_neighbours() -> None:
    """1/(W-1) would be a division by zero: refused where it matters, 0 where it is only told."""
    model, (tokens, labels) = make_model(), batch()
    with pytest.raises(ValueError, match="length is 1"):
        window_loss(model, tokens, labels, 3, 1, continuity_weight=0.1)
    terms = window_loss(model, tokens, labels, 3, 1)
    assert terms.continuity == 0
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(terms.total, list(model.blocks.parameters())))  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", [{"continuity_weight": -0.1}, {"norm_weight": -1.0}])
def test_negative_weights_are_refused(weights: dict[str, float]) -> None:
    model, (tokens, labels) = make_model(), batch()
    with pytest.raises(ValueError, match="must not be negative"):
        window_loss(model, tokens, labels, 3, 5, **weights)


def test_shrinking_the_raw_states_pays_without_changing_what_is_said() -> None:
    """The trap: h is read through the final norm alone, so the raw term can be made small without bringing neighbours
    closer.
    """
    hidden, model = random_hidden(), make_model()
    logits, shrunk = model.head(model.final_norm(hidden)), model.head(model.final_norm(0.1 * hidden))
    torch.testing.assert_close(logits, shrunk, rtol=0, atol=1e-3)  # the norm's epsilon
    assert continuity_term(0.1 * hidden).item() == pytest.approx(0.01 * continuity_term(hidden).item())
