"""Rows of stickers: scenes and edits that were encoded once, drawn anew in each step."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from training.batches import WORLDS, random_generator
from training.config import DiffusionConfig
from training.latent_facts import Facts, latent_statistics
from training.latents import LatentPool, edit_shard, read_pool, scene_shard, write_shards
from training.prompts import Tokenizer, null_prompt
from training.rows import Rows
from training.run import Run


class PoolRows:
    """What a step takes from the pools of a run."""

    def __init__(
        self,
        config: DiffusionConfig,
        run: Run,
        model: RPiAE,
        tokenizer: Tokenizer,
        facts: Facts | None = None,
    ) -> None:
        """Encodes what is not encoded yet; sets the model's latent statistics.

        `facts`: those that the denoiser was trained with before; absent: the pool's own.
        """
        self._config = config
        self._null_prompt = null_prompt(tokenizer)
        world, directory = WORLDS[config.world], run.directory / "latents"
        scenes = partial(scene_shard, model, tokenizer, world, omit_places=config.omit_places)
        edits = partial(edit_shard, model, tokenizer, world)
        pools = {
            kind: read_pool(write_shards(directory, kind, count, make, config.seed))
            for kind, count, make, share in (
                ("scenes", config.pool_scenes, scenes, 1 - config.edit_share),
                ("edits", config.pool_edits, edits, config.edit_share),
            )
            if share > 0
        }
        if facts is None:
            mean, std = latent_statistics(
                next(iter(pools.values())).latents, config.per_channel_normalization
            )
        else:
            mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
        model.set_normalization(mean.tolist(), std.tolist())
        pools = {kind: pool.normalize(mean, std) for kind, pool in pools.items()}
        # One of the pools may be missing; then nothing is drawn from it.
        some = next(iter(pools.values()))
        self.scenes, self.edits = (pools.get(kind, some) for kind in ("scenes", "edits"))

    def batch(self, step: int) -> list[Rows]:
        """The rows of a step, see `draw_rows`."""
        return draw_rows(self._config, self.scenes, self.edits, step, self._null_prompt)


def draw_rows(
    config: DiffusionConfig,
    scenes: LatentPool,
    edits: LatentPool,
    step: int,
    null_prompt: Tensor | None = None,
) -> list[Rows]:
    """This step's rows: scenes without source, edits with it, edits whose source was dropped."""
    rng = random_generator(config.seed, "diffusion", step)
    num_edits = round(config.edit_share * config.batch_size)
    edit_index = torch.from_numpy(rng.integers(len(edits), size=num_edits))
    scene_index = torch.from_numpy(rng.integers(len(scenes), size=config.batch_size - num_edits))
    kept = torch.from_numpy(rng.random(num_edits) >= config.source_dropout)
    plain = [Rows.of(scenes, scene_index, False), Rows.of(edits, edit_index[~kept], False)]
    without = Rows(
        torch.cat([rows.latents for rows in plain]),
        torch.cat([rows.prompts for rows in plain]),
        torch.cat([rows.coverage for rows in plain]),
        None,
    )
    rows = [without, Rows.of(edits, edit_index[kept], True)]
    return [replace(part, null_prompt=null_prompt) for part in rows if len(part.latents)]
