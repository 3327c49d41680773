"""The adversary: when it acts, how much it weighs, how it learns, what it looks through."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.decoder import PixelDecoder
from models.discriminator import DinoConfig, DinoEncoder
from models.encoder import SmallViT
from models.manifest import BundleError
from tests.unit.training.conftest import MODEL
from training.adversary import Adversary, load_dino
from training.augment import augment
from training.batches import torch_generator
from training.config import AutoencoderConfig, OptimConfig
from training.losses import discriminator_loss, generator_loss
from training.processes import Processes

CONFIG = AutoencoderConfig(
    name="tiny",
    stage="decoder",
    steps=40,
    batch_size=2,
    optim=OptimConfig(lr=1e-3),
    model=MODEL,
    gan_weight=0.75,
    discriminator_start=2,
    gan_start=5,
    discriminator_optim=OptimConfig(lr=1e-3, warmup_steps=4, clip=0.0),
)

ONE = Processes(CONFIG.compute)


@pytest.fixture
def encoder() -> SmallViT:
    torch.manual_seed(0)
    return SmallViT(MODEL.encoder)


@pytest.fixture
def adversary(encoder: SmallViT) -> Adversary:
    return Adversary(CONFIG, encoder, ONE)


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # relu(1 - real) = 0, 0.5, 2; relu(1 + fake) = 0, 1, 2
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 1))
    assert generator_loss(fake).item() == pytest.approx(2 / 3)


def test_it_acts_from_its_steps_on(adversary: Adversary) -> None:
    assert [step for step in range(8) if adversary.learns(step)] == [2, 3, 4, 5, 6, 7]
    assert [step for step in range(8) if adversary.felt(step)] == [5, 6, 7]


def test_without_a_weight_nothing_is_built(encoder: SmallViT) -> None:
    idle = Adversary(replace(CONFIG, gan_weight=0.0), encoder, ONE)
    assert (idle.modules, idle.optimizers, idle.name) == ({}, {}, "none")
    assert not idle.learns(30)
    assert not idle.felt(30)


def test_the_painter_cannot_feel_it_before_it_learned() -> None:
    with pytest.raises(ValueError, match="gan_start 1 must not come before discriminator_start 2"):
        replace(CONFIG, gan_start=1)


def test_the_weight_compares_gradients_at_the_last_layer(adversary: Adversary) -> None:
    torch.manual_seed(1)
    decoder = PixelDecoder(MODEL.decoder)
    tokens, targets = torch.randn(2, 64, 32), images(0)
    painted = decoder(tokens)
    base = functional.l1_loss(painted, targets)
    last = decoder.to_pixels.weight
    state = adversary.discriminator.train().state_dict()
    before = {key: value.clone() for key, value in state.items()}
    term, told = adversary.painter_term(base, painted, last, step=7)
    after = adversary.discriminator.state_dict()
    assert all(value.equal(before[key]) for key, value in after.items())

    seen = augment(2 * painted - 1, torch_generator(CONFIG.seed, "augment-painter", 7))
    logits = adversary.discriminator.eval()(adversary.features((seen + 1) / 2))
    loss = -logits.mean()
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (base, loss)]
    weight = 0.75 * min(float(norms[0] / (norms[1] + 1e-6)), 1e4)
    assert told["gan_weight"] == pytest.approx(weight, rel=1e-4)
    assert told["gan"] == pytest.approx(loss.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(term, last, retain_graph=True)
    assert gradient.norm().item() == pytest.approx(0.75 * norms[0].item(), rel=1e-3)

    (base + term).backward()
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_a_silent_adversary_cannot_outweigh_the_rest(
    adversary: Adversary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.adversary.generator_loss", lambda fake: 1e-30 * fake.mean())
    decoder = PixelDecoder(MODEL.decoder)
    painted = decoder(torch.randn(2, 64, 32))
    base = 1e3 * functional.l1_loss(painted, images(0))
    _, told = adversary.painter_term(base, painted, decoder.to_pixels.weight, step=7)
    assert told["gan_weight"] == pytest.approx(0.75e4)


def test_it_learns_to_tell_flat_pictures_from_noise(encoder: SmallViT) -> None:
    optim = OptimConfig(lr=1e-2, warmup_steps=1, clip=0.0)
    adversary = Adversary(replace(CONFIG, steps=32, discriminator_optim=optim), encoder, ONE)
    flat = torch.full((2, 3, 128, 128), 0.5)
    told = [adversary.learn(images(step), flat, step) for step in range(2, 32)]
    assert told[0]["discriminator"] > 0.9
    assert told[-1]["discriminator"] < 0.6
    assert told[-1]["logits_real"] > 0 > told[-1]["logits_fake"]


def test_its_schedule_begins_when_it_does(adversary: Adversary) -> None:
    rates = []
    for step in (2, 3, 6):
        adversary.learn(images(0), images(1), step)
        rates.append(adversary.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3 / 4, 2e-3 / 4, 1e-3])


def test_painted_images_come_clamped_and_in_8_bit(
    adversary: Adversary, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def keep(batch: Tensor, *_: object) -> Tensor:
        seen.append(batch)
        return batch

    monkeypatch.setattr("training.adversary.augment", keep)
    painted = (2 * images(1) - 0.5).requires_grad_()
    adversary.learn(images(0), painted, step=2)
    assert painted.grad is None
    levels = 255 * (seen[1] + 1) / 2
    assert (levels.min(), levels.max()) == (0, 255)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(levels / 255, painted.clamp(0, 1), atol=1 / 500, rtol=0)


TINY_DINO = DinoConfig(image_size=32, width=16, depth=4, num_heads=2)


def dino_file_tensors() -> dict[str, Tensor]:
    """A random state dict under the names that DINO's authors use."""
    generator = torch.Generator().manual_seed(0)
    width = TINY_DINO.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for index in range(TINY_DINO.depth):
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{index}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{index}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{index}.{name}.weight"] = (width,)
            shapes[f"blocks.{index}.{name}.bias"] = (width,)
    return {name: 0.3 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def run_by_hand(state: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Tokens after every block of a ViT with these weights, from normalised pixels."""
    width = TINY_DINO.width
    patches = functional.conv2d(
        pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8
    )
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1)
    x = x + state["pos_embed"]
    after = []
    for index in range(TINY_DINO.depth):
        part = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in state.items()
            if name.startswith(f"blocks.{index}.")
        }

        def norm(y: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            weight, bias = part[f"{name}.weight"], part[f"{name}.bias"]
            return functional.layer_norm(y, (width,), weight, bias, 1e-6)

        def linear(y: Tensor, name: str, part: dict[str, Tensor] = part) -> Tensor:
            return functional.linear(y, part[f"{name}.weight"], part[f"{name}.bias"])

        q, k, v = linear(norm(x, "norm1"), "attn.qkv").unflatten(-1, (3, 2, -1)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (width // 2) ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(mixed, "attn.proj")
        hidden = functional.gelu(linear(norm(x, "norm2"), "mlp.fc1"), approximate="tanh")
        x = x + linear(hidden, "mlp.fc2")
        after.append(x)
    return after


def test_dino_weights_come_to_their_places(tmp_path: Path) -> None:
    state = dino_file_tensors()
    torch.save(state, tmp_path / "dino.pth")
    adversary_encoder = load_dino(tmp_path / "dino.pth", TINY_DINO)
    blocks: list[Tensor] = []
    for block in adversary_encoder.model.layers:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    pictures = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    adversary_encoder(pictures)
    expected = run_by_hand(state, (pictures - mean) / std)
    for found, wanted in zip(blocks, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_dino_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = dino_file_tensors()
    del state["blocks.1.attn.qkv.bias"]
    state["head.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "dino.pth")
    with pytest.raises(BundleError) as raised:
        load_dino(tmp_path / "dino.pth", TINY_DINO)
    for part in (
        "dino_weights: ",
        "missing blocks.1.attn.qkv.bias",
        "unexpected head.weight",
        "norm.weight has shape (3,), expected (16,)",
    ):
        assert part in str(raised.value)


def test_heads_fit_the_encoder_that_they_look_through(
    encoder: SmallViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Adversary(CONFIG, encoder, ONE)
    assert own.features.encoder is encoder  # shared: no second copy in memory
    assert own.name == "heads on the run's frozen encoder, small-vit"
    torch.manual_seed(0)
    monkeypatch.setattr(
        "training.adversary.load_dino", lambda path: DinoEncoder(TINY_DINO).requires_grad_(False)
    )
    file = str(tmp_path / "dino.pth")
    dino = Adversary(replace(CONFIG, dino_weights=file), encoder, ONE)
    assert dino.name == f"heads on DINO, weights {file}"
    told = dino.learn(images(0), images(1), step=2)
    assert set(told) == {"discriminator", "logits_real", "logits_fake"}
    assert isinstance(dino.discriminator.heads[0].mix.conv, nn.Conv1d)
    assert dino.discriminator.heads[0].mix.conv.in_channels == TINY_DINO.width
