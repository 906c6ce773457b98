"""An RQ-VAE of a run's items, as a peer of residual k-means.

  python -m hsrl_jax.launch --flagfile=FLAGS --mode=simulator --workdir=WORKDIR
  python tests/benchmarks/rq_vae.py WORKDIR rq_vae.npz
  python -m hsrl_jax.launch --flagfile=FLAGS --sids=rq_vae.npz

The second line makes SIDs by a residual-quantised autoencoder (Lee et al. 2022;
as TIGER, Rajput et al. 2023, has it): an encoder and a decoder of three layers,
L codebooks in a latent space of 32 numbers that begin as k-means of its first
outputs, straight-through gradients, commitment 0.25, unused codes put where
rows are. It has the sizes, features and topics of the run, and prints beside
each other what the SIDs of both lose, and how many items share one before all
get their own. An item's loss is measured in the space of features, with the
codebooks that fit the tokens best.
"""

import functools
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from hsrl_jax import settings, sid
from hsrl_jax.data import sids
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.host import watch
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.stages.run import Run

LATENT, HIDDEN = 32, (512, 256, 128)
STEPS, BATCH, RATE, COMMITMENT = 6_000, 1_024, 1e-3, 0.25
PER_CALL = 100  # Steps between two looks for codes that nobody uses.


class Mlp(nn.Module):
  """Layers with ReLU between, [D] -> [sizes[-1]]."""

  sizes: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    for size in self.sizes[:-1]:
      x = nn.relu(nn.Dense(size)(x))
    return nn.Dense(self.sizes[-1])(x)


def quantize(codebooks, z):
  """Tokens [L], and what is left of a latent before each level, [L, d]."""
  rest, tokens, left = z, [], []
  for codes in codebooks:
    token = jnp.square(rest - codes).sum(-1).argmin()
    left.append(rest)
    tokens.append(token)
    rest = rest - codes[token]
  return jnp.stack(tokens), jnp.stack(left)


def fit(x: np.ndarray, levels: int, vocab_size: int, seed: int):
  """Latents [N, d] and codebooks [L, V, d] of rows [N, D]."""
  key = jax.random.key(seed)
  x = (x - x.mean(0)) / np.sqrt(np.square(x - x.mean(0)).mean())
  encoder, decoder = Mlp((*HIDDEN, LATENT)), Mlp((*HIDDEN[::-1], x.shape[1]))
  params = {
    "encoder": encoder.init(jax.random.fold_in(key, 0), x[:1]),
    "decoder": decoder.init(jax.random.fold_in(key, 1), np.zeros((1, LATENT))),
  }
  latents = np.asarray(encoder.apply(params["encoder"], x))
  params["codebooks"] = sid.fit(
    jax.random.fold_in(key, 2), latents, levels=levels, vocab_size=vocab_size
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
  x = jnp.asarray(x)

  def loss(params, rows):
    z = encoder.apply(params["encoder"], rows)
    codebooks = params["codebooks"]
    tokens, left = jax.vmap(functools.partial(quantize, codebooks))(z)
    chosen = jnp.stack([c[t] for c, t in zip(codebooks, tokens.T, strict=True)])
    chosen = chosen.swapaxes(0, 1)  # [B, L, d].
    stop = jax.lax.stop_gradient
    codes = jnp.square(stop(left) - chosen).sum((1, 2)).mean()
    commit = jnp.square(left - stop(chosen)).sum((1, 2)).mean()
    through = z + stop(chosen.sum(1) - z)
    again = decoder.apply(params["decoder"], through)
    lost = jnp.square(again - rows).sum(-1).mean()
    return lost + codes + COMMITMENT * commit

  @jax.jit
  def call(params, moments, x, key):
    def step(carry, key):
      params, moments = carry
      rows = x[jax.random.randint(key, (BATCH,), 0, len(x))]
      value, grads = jax.value_and_grad(loss)(params, rows)
      changes, moments = optimizer.update(grads, moments)
      return (optax.apply_updates(params, changes), moments), value

    keys = jax.random.split(key, PER_CALL)
    (params, moments), values = jax.lax.scan(step, (params, moments), keys)
    z = encoder.apply(params["encoder"], x)
    tokens, left = jax.vmap(functools.partial(quantize, params["codebooks"]))(z)
    return params, moments, values.mean(), tokens, left

  moments = optimizer.init(params)
  with watch.bar(STEPS, "RQ-VAE", "step") as bar:
    for number in range(STEPS // PER_CALL):
      params, moments, value, tokens, left = call(
        params, moments, x, jax.random.fold_in(key, 3 + number)
      )
      bar.update(PER_CALL)
      bar.set_postfix(loss=f"{float(value):.4f}")
      if number < STEPS // PER_CALL // 2:
        params = _revived(params, tokens, left, number)
  return np.asarray(encoder.apply(params["encoder"], x)), params["codebooks"]


def _revived(params, tokens, left, seed: int):
  """Codes that no row has go to residuals of rows."""
  rng, codebooks = np.random.default_rng(seed), []
  for level, codes in enumerate(np.asarray(params["codebooks"])):
    used = np.bincount(np.asarray(tokens[:, level]), minlength=len(codes))
    dead = np.flatnonzero(used == 0)
    rows = rng.choice(len(left), len(dead))
    codes = np.array(codes)
    codes[dead] = np.asarray(left[:, level])[rows]
    codebooks.append(codes)
  return params | {"codebooks": jnp.asarray(np.stack(codebooks))}


def measured(x, plain, unique, vocab_size: int) -> dict[str, float]:
  """What tokens lose of the features, as shares of their variance."""
  found = {}
  for name, tokens in (("plain", plain), ("unique", unique)):
    codebooks = sids.codebooks(x, tokens, vocab_size)
    found[name] = float(
      sid.relative_error(x, sid.reconstruct(codebooks, tokens))
    )
  found["shared"] = sid_quality.collided(plain, vocab_size) / len(x)
  return found


def main(workdir: str, out: str, seed: str = "0") -> None:
  folder = pathlib.Path(workdir)
  kept = workdir_lib.kept_flags(folder)
  run = Run(settings.of_texts(f"{folder}/flags.txt", kept), folder)
  c, x = run.config.quantizer, np.asarray(run.items.features[1:])
  rows, size = {}, (c.levels, c.vocab_size)
  start = time.monotonic()
  codebooks = sid.fit(
    jax.random.key(c.seed),
    x,
    levels=c.levels,
    vocab_size=c.vocab_size,
    iterations=c.iterations,
    restarts=c.restarts,
  )
  plain = np.asarray(sid.encode(codebooks, x))
  unique = np.asarray(sid.encode_unique(codebooks, x))
  rows["residual k-means"] = measured(x, plain, unique, size[1]) | {
    "seconds": time.monotonic() - start
  }
  start = time.monotonic()
  latents, codebooks = fit(x, *size, int(seed))
  plain = np.asarray(sid.encode(codebooks, latents))
  unique = np.asarray(sid.encode_unique(codebooks, latents))
  spent = time.monotonic() - start
  rows["RQ-VAE"] = measured(x, plain, unique, size[1]) | {"seconds": spent}
  names = [str(n or i) for i, n in enumerate(run.items.external_ids)][1:]
  np.savez(out, item_id=np.array(names), tokens=unique)
  print(f"{'':18}{'lost':>8}{'unique':>8}{'shared':>8}{'seconds':>9}")
  for name, row in rows.items():
    print(
      f"{name:18}{row['plain']:8.4f}{row['unique']:8.4f}{row['shared']:8.1%}"
      f"{row['seconds']:9.1f}"
    )
  print(json.dumps({"items": len(x), "sizes": size, "rows": rows}))


if __name__ == "__main__":
  main(*sys.argv[1:])
