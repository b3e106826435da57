"""Catalogues, models and customers of any size to measure serving with: planted, not learned."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.artifact import Manifest, ModelArtifact, save_model
from common.features import Catalogue, ContentSpec, write_catalogue
from common.model import initial_state
from common.protocol import ModelPlan, TrainingPlan
from common.statement import statement
from server.registry.versions import Registry

TASTES = 200
CONTENT_WIDTH = 1024
#: What customers did before they ask.
HISTORY = 10
DISTRIBUTION = (
    "each product near one of 200 tastes (taste t with a share of 1/t); dimension j has the scale "
    "of j^-1/2, the distance to the taste half of it; lengths are lognormal with sigma 1/2"
)


def taste_vectors(size: int, dimension: int, draw: np.random.Generator) -> np.ndarray:
    """Return (size, dimension) float32 product vectors as :data:`DISTRIBUTION` says."""
    scale = (np.arange(1, dimension + 1) ** -0.5).astype(np.float32)
    tastes = draw.standard_normal((TASTES, dimension), np.float32) * scale
    shares = 1.0 / np.arange(1, TASTES + 1)
    chosen = draw.choice(TASTES, size, p=shares / shares.sum())
    vectors = draw.standard_normal((size, dimension), np.float32)
    vectors *= scale / 2
    vectors += tastes[chosen]
    vectors *= draw.lognormal(0.0, 0.5, size).astype(np.float32)[:, None]
    return vectors


def customer_vectors(vectors: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Return (count, d) float32: each the sum over a history, as the model sums it."""
    rows = draw.integers(0, len(vectors), (count, HISTORY))
    found: np.ndarray = vectors[rows].sum(axis=1, dtype=np.float32)
    return found


def planted_catalogue(size: int, draw: np.random.Generator) -> Catalogue:
    """Return products with a category, a brand, both together, a title and a price."""
    number = np.arange(size)
    category, brand = draw.zipf(1.3, size) % 400, draw.zipf(1.3, size) % 3000
    products = pd.DataFrame(
        {
            "item_id": [f"p{i:07d}" for i in number],
            "title": [f"Product {i}" for i in number],
            "category": [f"category {i}" for i in category],
            "brand": [f"brand {i}" for i in brand],
            "price": draw.gamma(2.0, 5.0, size).round(2),
        }
    )
    features = ("category", "brand", "category*brand")
    return Catalogue.of(products, ContentSpec(features=features, content_width=CONTENT_WIDTH))


def planted_model(
    catalogue: Catalogue, dimension: int, draw: np.random.Generator, name: str = "planted"
) -> ModelArtifact:
    """Return a model of a row for each product, with popularity as long-tailed as in shops."""
    model = ModelPlan(dimension=dimension, learned_items=catalogue.size, content_scale=0.7)
    plan = TrainingPlan(
        model=model, rounds=2, noise_multiplier=5.0, popularity_noise_multiplier=5.0
    )
    state = dict(initial_state(model, catalogue.size))
    state["item_embedding"] = taste_vectors(catalogue.size, dimension, draw)
    state["spectrum"] = np.ones(dimension, np.float32)
    counts = draw.pareto(1.2, catalogue.size) + 0.01
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    manifest = Manifest(
        version=name,
        server_round=2,
        data_columns=tuple(map(str, catalogue.products.columns)),
        config={"plan": plan.model_dump(mode="json")},
        code_digest="0" * 64,
        privacy=statement(plan),
        catalogue_fingerprint=catalogue.fingerprint,
    )
    return ModelArtifact(state, catalogue.item_ids, manifest)


def write_served(folder: Path, size: int, dimension: int, seed: int = 0) -> Catalogue:
    """Write ``catalogue`` and a ``registry`` of one version below a folder."""
    draw = np.random.default_rng(seed)
    catalogue = planted_catalogue(size, draw)
    write_catalogue(catalogue, folder / "catalogue")
    publish(folder, catalogue, planted_model(catalogue, dimension, draw))
    return catalogue


def publish(folder: Path, catalogue: Catalogue, artifact: ModelArtifact) -> int:
    """Publish a model in the ``registry`` below a folder; return its version."""
    name = artifact.manifest.version
    save_model(folder / name, artifact.arrays, catalogue.item_ids, artifact.manifest)
    return Registry(folder / "registry").publish(folder / name).version


def histories(
    catalogue: Catalogue, count: int, draw: np.random.Generator
) -> list[dict[str, float]]:
    """Return what ``count`` customers did: different products of weight 1."""
    rows = draw.integers(0, catalogue.size, (count, HISTORY))
    return [{str(catalogue.item_ids[row]): 1.0 for row in chosen} for chosen in rows]
