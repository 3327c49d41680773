"""Stage 0: representation pretraining of the small encoder on stickers.

Trains the encoder and throw-away heads. Losses: what is in each patch (kind, colour), the
background, a linear reconstruction of each patch, and a contrastive caption loss.
Run: rpiae train stickers-pretrain
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import SmallViT
from models.positions import patchify
from models.text import PAD_ID, SPECIAL_TOKENS, PromptTokenizer
from training.batches import (
    WORLDS,
    LabelledImages,
    image_batch,
    labelled_batch,
    random_generator,
    tokenizer_world,
)
from training.captions import vocabulary
from training.checkpoint import resume, save_checkpoint
from training.config import PretrainConfig
from training.initialise import initialise_encoder
from training.log import RunLog
from training.losses import contrastive_loss
from training.optim import make_optimizer, update
from training.processes import Processes
from training.run import Run
from training.stickers import COLORS, SHAPES, THINGS

INIT_IMAGES = 1024  # 64 patches each: enough rows for the covariance of 768 pixel values


def prompt_tokenizer(max_tokens: int = 24) -> PromptTokenizer:
    """The tokenizer of the stickers' grammar: one frozen, sorted word list."""
    return PromptTokenizer([*SPECIAL_TOKENS, *vocabulary()], max_tokens)


class PretrainHeads(nn.Module):
    """What stage 0 asks of the tokens; dropped afterwards."""

    def __init__(self, width: int, patch_values: int, num_words: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, 1 + len(SHAPES) + len(THINGS))
        self.color = nn.Linear(width, 1 + len(COLORS))
        self.background = nn.Linear(width, len(COLORS))
        self.pixels = nn.Linear(width, patch_values)
        self.words = nn.Embedding(num_words, width, padding_idx=PAD_ID)
        self.text = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.image = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def caption_loss(self, tokens: Tensor, prompt_tokens: Tensor) -> Tensor:
        """Sigmoid contrastive loss between pooled tokens and summed caption words."""
        texts = functional.normalize(self.text(self.words(prompt_tokens).sum(1)), dim=-1)
        images = functional.normalize(self.image(tokens.mean(1)), dim=-1)
        return contrastive_loss(images, texts, self.scale, self.bias)


def pretrain_loss(
    config: PretrainConfig,
    encoder: SmallViT,
    heads: PretrainHeads,
    batch: LabelledImages,
    prompt_tokens: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum and the terms of one batch."""
    tokens = encoder(batch.images)
    kind_weights = torch.ones(heads.kind.out_features)
    kind_weights[0] = config.background_weight
    patches = patchify(2 * batch.images - 1, encoder.config.patch_size)
    logits = heads.kind(tokens).flatten(0, 1)
    terms = {
        "kind": functional.cross_entropy(logits, batch.kinds.flatten(), kind_weights),
        "color": functional.cross_entropy(
            heads.color(tokens).flatten(0, 1), batch.colors.flatten()
        ),
        "scene": functional.cross_entropy(heads.background(tokens.mean(1)), batch.backgrounds),
        "pixels": functional.mse_loss(heads.pixels(tokens), patches),
        "caption": heads.caption_loss(tokens, prompt_tokens),
    }
    loss = (
        terms["kind"]
        + config.color_weight * terms["color"]
        + config.scene_weight * terms["scene"]
        + config.reconstruction_weight * terms["pixels"]
        + config.caption_weight * terms["caption"]
    )
    found = batch.kinds > 0
    hits = (logits.argmax(-1) == batch.kinds.flatten())[found.flatten()]
    accuracy = float(hits.float().mean()) if found.any() else 0.0
    return loss, {key: term.item() for key, term in terms.items()} | {"item_accuracy": accuracy}


def main(config: PretrainConfig, run: Run) -> None:
    """Train or resume; the result is `encoder` in the run's checkpoint."""
    world = tokenizer_world(WORLDS[config.world])
    tokenizer = prompt_tokenizer()
    torch.manual_seed(config.seed)
    encoder = SmallViT(config.model.encoder)
    heads = PretrainHeads(
        config.model.encoder.width, encoder.embed.in_features, len(tokenizer.words)
    )
    initialise_encoder(
        encoder,
        image_batch(world, INIT_IMAGES, random_generator(config.seed, "init", 0)),
        config.num_components,
    )
    processes = Processes(config.compute)
    for module in (encoder, heads):
        processes.place(module)
    modules = {"encoder": encoder, "heads": heads}
    optimizer = make_optimizer([*encoder.parameters(), *heads.parameters()], config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    with RunLog(run.directory, config.name, config.steps, first_step=first) as log:
        for step in range(first, config.steps):
            rng = random_generator(config.seed, "pretrain", step)
            batch = labelled_batch(world, config.batch_size, rng)
            prompts = tokenizer.encode(batch.captions)
            loss, terms = pretrain_loss(config, encoder, heads, batch, prompts)
            loss.backward()
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            log.step(step, config.batch_size, loss=loss.item(), **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
