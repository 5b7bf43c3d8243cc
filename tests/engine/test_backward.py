"""One backward pass: what it reaches, and the gradients of images that are formed on its way."""

import pytest
import torch
from torch import nn

from dpcgan_fast.engine.backward import reached_uses
from dpcgan_fast.engine.layer_gradients import MaterialisedGradient
from dpcgan_fast.engine.recorded import RecordedModule
from dpcgan_fast.engine.rules_conv import WindowGradient

ROWS = 5


def images():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(),
        nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(3 * 64, 1),
    )  # fmt: skip


def recorded(module, norm_mode="auto"):
    trainable = {p: name for name, p in module.named_parameters()}
    return RecordedModule(module, trainable, fused=False, norm_mode=norm_mode, measure=True)


def reached(of, x, units=False, early=True):
    output, call = of.forward((x,), {})
    losses = output.flatten(1).sum(1)
    form = {"early": of.early(len(x), units)} if early else {}
    return reached_uses([call], [losses], [torch.ones_like(losses)], of.trainable, **form)[0]


def per_sample(of, found):
    return {p: grad for _, gradient in of.gradients(found, ROWS, False) for p, grad in gradient.per_sample().items()}


def test_gradients_of_images_are_formed_on_the_way_and_are_the_same():
    of, x = recorded(images()), torch.rand(ROWS, 2, 16, 16)
    late = reached(of, x, early=False)
    assert all(use.formed is None for use in late)
    early = reached(of, x)
    kinds = [type(use.formed) for use in early]
    assert kinds == [type(None), MaterialisedGradient, MaterialisedGradient, type(None)], "nothing is behind the first"
    assert all(use.grads == (None,) for use in early[1:3]), "the gradients of their outputs are let go"
    expected = per_sample(of, late)
    for parameter, grad in per_sample(of, early).items():
        torch.testing.assert_close(grad, expected[parameter])


def test_a_layer_that_is_used_twice_adds_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(512, 1)

        def forward(self, x):
            return self.out(self.conv(self.conv(self.conv(x)).tanh()).flatten(1))

    module, x = Twice(), torch.rand(ROWS, 2, 16, 16)
    of = recorded(module)
    found = reached(of, x)
    assert sum(use.formed is not None for use in found) == 2
    uses = [gradient.per_sample()[module.conv.weight] for name, gradient in of.gradients(found, ROWS, False)[:3]]
    for row in range(ROWS):
        (expected,) = torch.autograd.grad(module(x[row : row + 1]).sum(), [module.conv.weight])
        torch.testing.assert_close(sum(grad[row] for grad in uses), expected)


def test_a_layer_that_the_losses_do_not_depend_on_is_not_reached():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.spare, self.out = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = self.first(x)
            self.spare(x)
            return self.out(x)

    found = reached(recorded(Spare()), torch.rand(ROWS, 1, 16, 16))
    assert [use.use.name for use in found] == ["first", "out"]


@pytest.mark.parametrize(("norm_mode", "units"), [("direct", False), ("gram", False), ("auto", True)])
def test_not_where_gradients_are_not_to_be_kept(norm_mode, units):
    found = reached(recorded(images(), norm_mode), torch.rand(ROWS, 2, 16, 16), units)
    assert all(use.formed is None for use in found)


def test_not_by_the_reference_back_end(monkeypatch):
    monkeypatch.setenv("DPCGAN_BACKEND", "reference")
    found = reached(recorded(images()), torch.rand(ROWS, 2, 16, 16))
    assert not any(isinstance(use.formed, MaterialisedGradient) for use in found)
    assert isinstance(found[1].formed, WindowGradient)


def test_an_error_on_the_way_leaves_no_hook():
    of, x = recorded(images()), torch.rand(ROWS, 2, 16, 16)
    output, call = of.forward((x,), {})
    losses = output.sum(1)

    def form(use):
        def fail(_):
            raise ValueError("on purpose")

        return fail if isinstance(use.module, nn.Conv2d) else None

    with pytest.raises(ValueError, match="on purpose"):
        reached_uses([call], [losses], [torch.ones_like(losses)], of.trainable, early=form)
    with pytest.raises(RuntimeError, match="second time"):  # what ran before has been let go; no hook comes first
        reached_uses([call], [losses], [torch.ones_like(losses)], of.trainable)
